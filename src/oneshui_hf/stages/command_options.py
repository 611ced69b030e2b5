"""The options of every stage. They import nothing heavy, so that the command line knows them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..cache import KINDS
from ..options import option

MAX_SEED = 2**63 - 1
DEFAULT_METHOD = "metaunlearn"  # the one method that the core knows by name
DEFAULT_MODEL = "google/vit-base-patch16-224-in21k"


def words(text: str | None) -> tuple[str, ...]:
    """Return the words of 'a, b'."""
    return tuple(word.strip() for word in text.split(",")) if text else ()


@dataclass(frozen=True)
class DataOptions:
    """Which data, and which of its columns are what."""

    dataset: str = option(
        help="A data set's name (see `oneshui datasets`), a folder with metadata.csv, or a Hub id or path that `datasets` reads."
    )
    data_dir: str | None = option(None, "Where a named data set lies on disk.")
    subset: str | None = option(None, "The data set's configuration, where it has several ('cleaned' of mufac).")
    image_column: str | None = option(None, "For data of your own: the column of photos; guessed otherwise.")
    identity_column: str | None = option(None, "For data of your own: the column of people; guessed otherwise.")
    label_columns: str | None = option(None, "For data of your own: its label columns, separated by commas; guessed otherwise.")

    def source(self) -> dict[str, Any]:
        """Return the arguments of `load_faces`."""
        named = {name: getattr(self, name) for name in ("dataset", "data_dir", "subset", "image_column", "identity_column")}
        return named | {"label_columns": words(self.label_columns)}


@dataclass(frozen=True)
class SplitOptions:
    """Who asks to be forgotten, and whom preparation may simulate."""

    forget: int = option(5, "How many people ask to be forgotten.", minimum=1)
    reserve_supports: int | None = option(
        None,
        "How many training people keep one photo out of training, for simulated requests; one in four by default.",
        minimum=0,
    )
    meta_identities: str = option(
        "all",
        "Whom preparation may simulate: anybody of train, as in practice, or only those who do not ask later.",
        choices=("all", "disjoint"),
    )


@dataclass(frozen=True)
class TrainOptions(SplitOptions, DataOptions):
    """The recipe of a model. The defaults are the paper's for CelebA."""

    split: str | None = option(None, "Use the split in this file (see `oneshui data split`) instead of drawing one.")
    model: str | None = option(None, f"'tiny', a local checkpoint or a Hub id; {DEFAULT_MODEL} by default, 'tiny' for the synthetic data.")
    image_size: int | None = option(None, "Side of the model's input in pixels; the checkpoint's own by default.", minimum=16, maximum=2048)
    epochs: int = option(30, "Passes over the training photos.", flags=("--epochs", "--num-train-epochs"), minimum=1)
    batch_size: int = option(32, "Photos a step, for each process.", flags=("--batch-size", "--per-device-train-batch-size"), minimum=1)
    optimizer: str = option("sgd", "Which optimizer.", choices=("sgd", "adamw"))
    lr: float = option(1e-3, "Peak learning rate.", flags=("--lr", "--learning-rate"), minimum=0)
    weight_decay: float = option(1e-4, "Weight decay.", minimum=0)
    momentum: float = option(0.9, "Momentum of sgd.", minimum=0, maximum=1)
    warmup_epochs: float = option(2.0, "Epochs of linear warm-up before the cosine to zero.", minimum=0)
    augment: str = option("crop", "'crop' is a random resized crop and a flip.", choices=("crop", "flip", "none"))
    keep: str = option("best", "Keep the epoch that is best on val, or the last one.", choices=("best", "last"))
    sharded: int | None = option(
        None,
        "Train this many adapters, each on the people of one shard, over a backbone that is not trained; forgetting somebody then concerns "
        "one adapter alone.",
        minimum=2,
    )
    adapter_rank: int = option(16, "Rank of the adapters of --sharded.", minimum=1)
    bf16: bool = option(True, "Train in bfloat16 where the device has it.", flags=("--bf16/--no-bf16",))
    seed: int = option(0, "Seed of split, head, order and augmentation.", minimum=0, maximum=MAX_SEED)
    output_dir: str | None = option(None, "The run's folder; runs/<data set>-seed<seed> by default.")
    resume: bool = option(False, "Go on with an interrupted training.")
    overwrite: bool = option(False, "Replace a run that is there.")


@dataclass(frozen=True)
class CheckOptions(DataOptions):
    """What to look at."""

    split: str | None = option(None, "Look for photos that stand in two sets of the split in this file, too.")
    fixed_labels: str | None = option(None, "Labels that a person has one way only, separated by commas; 'Male' and alike by default.")


@dataclass(frozen=True)
class DrawOptions(SplitOptions, DataOptions):
    """Which split to draw."""

    seed: int = option(0, "Seed of the split.", minimum=0, maximum=MAX_SEED)
    rows: str = option(
        "all",
        "Split all annotated photos, as published splits do, or only those that are present.",
        choices=("all", "present"),
    )
    output: str = option("split.json", "The split's file.")
    overwrite: bool = option(False, "Replace a file that is there.")


@dataclass(frozen=True, kw_only=True)
class DataPushOptions(DataOptions):
    """Where a data set is published, and what of it."""

    repo_id: str = option(help="The repository on the Hub, as USER/NAME.")
    keep_names: bool = option(False, "Publish the names of people and photos as they are; numbers by default.")
    private: bool = option(True, "Make a new repository private.", flags=("--private/--public",))
    revision: str | None = option(None, "Branch to push to; made where it does not exist.")
    commit_message: str | None = option(None, "Message of the commit.")


@dataclass(frozen=True)
class RetrainOptions:
    """What may differ between an oracle and its original model."""

    run: str | None = option(None, "The original model's run; the newest by default.")
    seed: int | None = option(None, "Seed of order and augmentation; the original's by default.", minimum=0, maximum=MAX_SEED)
    data_dir: str | None = option(None, "Where the data set lies now, where it has moved since training.")
    output_dir: str | None = option(None, "The oracle's folder; RUN-oracle by default.")
    resume: bool = option(False, "Go on with an interrupted training.")
    overwrite: bool = option(False, "Replace a run that is there.")


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, for which model. The method's own options follow it on the command line."""

    method: str = option(DEFAULT_METHOD, "An installed method; see `oneshui methods`.")
    run: str | None = option(None, "The original model's run; the newest by default.")
    preset: str | None = option(None, "Values of the method's options: a name such as 'paper', or a file that `oneshui tune` wrote.")
    data_dir: str | None = option(None, "Where the data set lies now, where it has moved since training.")
    seed: int = option(0, "Seed of all draws.", minimum=0, maximum=MAX_SEED)
    face_encoder: str | None = option(
        None,
        "For a method that acts on people one by one: what finds a person by their photo later on. 'dlib', the id or path of an image "
        "model of transformers, or 'none'; dlib by default where it is installed.",
    )
    dry_run: bool = option(False, "Tell what preparing would take, and prepare nothing.")
    resume: bool = option(False, "Go on with an interrupted preparation.")
    overwrite: bool = option(False, "Replace what was prepared before, or what was begun.")


@dataclass(frozen=True)
class TuneOptions:
    """How to look for a method's options. Those of its own that are given keep their value; the others are searched."""

    method: str = option(DEFAULT_METHOD, "An installed method; see `oneshui methods`.")
    run: str | None = option(None, "The original model's run; the newest by default.")
    trials: int = option(20, "How many settings are tried, the defaults first.", minimum=1)
    requests: int = option(3, "Most simulated requests on which each is judged.", minimum=1)
    sample: int = option(256, "Most photos of each kind on which each is judged.", minimum=2)
    max_retain_drop: float = option(
        5.0,
        "Largest loss of score on the retain set, in points. A setting that exceeds it is taken only if all settings do.",
        minimum=0,
        formerly=("damage",),
    )
    data_dir: str | None = option(None, "Where the data set lies now, where it has moved since training.")
    seed: int = option(0, "Seed of all draws.", minimum=0, maximum=MAX_SEED)
    output: str | None = option(None, "The preset's file; RUN/tuned/METHOD.json by default.")
    resume: bool = option(False, "Go on with an interrupted search, or with more trials.")
    overwrite: bool = option(False, "Replace a file that is there.")


@dataclass(frozen=True)
class UnlearnOptions:
    """One request. The method's own options follow it on the command line."""

    method: str = option(DEFAULT_METHOD, "An installed method; see `oneshui methods`.")
    run: str | None = option(None, "The model's run; the newest original by default.")
    preset: str | None = option(
        None, "Values of the options that act at the request, by name or file as for `prepare`; the prepared ones by default."
    )
    images: tuple[str, ...] = option((), "A photo of the person; once a photo.", flags=("--image",))
    from_split: bool = option(False, "Take the support images of the split's own request, from the data set.")
    identity: tuple[str, ...] = option((), "Who is on the photo, where the training data knew them; once, or once a photo.")
    labels: tuple[str, ...] = option(
        (), "What holds on the photo, as 'Smiling,Young' or a class; the model's guess by default. Once a photo."
    )
    data_dir: str | None = option(None, "With --from-split: where the data set lies now, where it has moved.")
    keep: bool | None = option(
        None,
        "Keep what was prepared for the people who ask, or destroy it once the new model is written; by default destroyed with --image and "
        "kept with --from-split.",
        flags=("--keep/--destroy",),
    )
    seed: int = option(0, "Seed of all draws.", minimum=0, maximum=MAX_SEED)
    force: bool = option(False, "Apply an artefact that was prepared for other weights.")
    output_dir: str | None = option(None, "The new model's folder; RUN-<method> by default.")
    overwrite: bool = option(False, "Replace a run that is there.")


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure against what."""

    run: str | None = option(None, "The model to evaluate; the newest run of any kind by default.")
    oracle: str | None = option(None, "The oracle's run; ORIGINAL-oracle by default, where it exists.")
    original: str | None = option(None, "The original model's run; the one that the model was made from by default.")
    references: int = option(
        0,
        "Models that never saw the forget set, for RMIA and the noise floor: oracles of other seeds, made and kept where they are missing.",
        minimum=0,
        maximum=8,
    )
    queries: int = option(2, "Versions of each photo that RMIA asks about: as it is, mirrored, shifted.", minimum=1, maximum=8)
    rmia_a: float = option(0.3, "RMIA: how much less likely a label is to a model that did not see the photo.", minimum=0, maximum=1)
    rmia_gamma: float = option(2.0, "RMIA: how much likelier a photo must be to dominate another.", minimum=1)
    resamples: int = option(1000, "How often the people are drawn anew for an interval.", minimum=100)
    relearn_steps: int = option(0, "Most steps of training until the forget set is back; 0 does not try.", minimum=0)
    data_dir: str | None = option(None, "Where the data set lies now, where it has moved since training.")
    cache_dir: str | None = option(None, "Where reference models are kept; see `oneshui cache`.")
    batch_size: int = option(
        64,
        "Photos a forward pass, for each process.",
        flags=("--batch-size", "--per-device-eval-batch-size"),
        minimum=1,
    )


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which grid to run, and where."""

    grid: str = option(help="A YAML file, or a grid that comes along: 'demo' or 'paper'.")
    output_dir: str | None = option(
        None, "The benchmark's folder; benchmarks/<name of the grid> by default. What is there is gone on with."
    )
    data_dir: tuple[str, ...] = option((), "NAME=DIR: where a data set of the grid lies; once a data set.")
    cache_dir: str | None = option(None, "Where models are kept; 'cache' in the benchmark's folder by default.")
    shard: str | None = option(None, "I/N: do the I-th of N parts, beside machines that share the folder and do the others.")
    dry_run: bool = option(False, "Tell what would be done and what it would take, and do nothing.")
    retry: bool = option(False, "Try again what failed before.")
    keep_models: bool = option(False, "Keep the weights of unlearned models, which their predictions otherwise stand for.")


@dataclass(frozen=True)
class PushOptions:
    """Where a run is published."""

    repo_id: str = option(help="The repository on the Hub, as USER/NAME.")
    run: str | None = option(None, "The run to publish.")
    private: bool = option(True, "Make a new repository private.", flags=("--private/--public",))
    with_people: bool = option(
        False, "Publish what was prepared for single people too, encrypted and without the secrets; needs --people-are-personal-data."
    )
    people_are_personal_data: bool = option(False, "With --with-people: say that you know what you publish.")
    revision: str | None = option(None, "Branch to push to; made where it does not exist.")
    commit_message: str | None = option(None, "Message of the commit.")


@dataclass(frozen=True)
class PullOptions:
    """What is fetched, and where to."""

    repo_id: str = option(help="The repository on the Hub, as USER/NAME.")
    output_dir: str | None = option(None, "The run's folder; runs/NAME by default.")
    revision: str | None = option(None, "Branch, tag or commit; main by default.")
    overwrite: bool = option(False, "Replace a run that is there.")


@dataclass(frozen=True)
class DemoOptions:
    """The demo."""

    output_dir: str = option("demo", "Folder of the demo's runs.")
    seed: int = option(0, "Seed of everything.", minimum=0, maximum=MAX_SEED)
    overwrite: bool = option(False, "Replace an earlier demo.")


@dataclass(frozen=True)
class CacheListOptions:
    """Which cache."""

    cache_dir: str | None = option(None, "The cache's folder; $ONESHUI_CACHE or ~/.cache/oneshui by default.")


@dataclass(frozen=True)
class ClearOptions(CacheListOptions):
    """What is removed from a cache."""

    kind: str | None = option(None, "Only entries of this kind.", choices=KINDS)
    older_than: float | None = option(None, "Only entries that were last used so many days ago, or earlier.", minimum=0)
    dry_run: bool = option(False, "Tell what would be removed, and remove nothing.")


@dataclass(frozen=True)
class ReportOptions:
    """What is reported, and where."""

    source: str = option(help="A run that was evaluated, or the folder of a benchmark.")
    output: str | None = option(None, "The HTML file; SOURCE/report.html by default. Its figures lie beside it.")
    with_images: bool = option(False, "Of a run: show the photos handed in. Such a copy is not to be passed on.")
    data_dir: str | None = option(None, "With --with-images: where the data set lies now, where it has moved since training.")
    overwrite: bool = option(False, "Replace a report that is there.")
