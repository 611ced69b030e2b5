"""The options of every command. This module imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..name_lists import split_names
from ..options import option
from ..runs import RUNS

MAX_SEED = 2**63 - 1
DEFAULT_METHOD = "metaunlearn"  # the one method that the core knows by name
DEFAULT_MODEL = "google/vit-base-patch16-224-in21k"

REPORT_TO = "Trackers that get the numbers: trackio, tensorboard, wandb, or several with commas. Paths and names are not sent."

DATA, MODEL, RECIPE, METHOD, EVALUATION = "Data", "Model", "Recipe", "Method", "Evaluation"  # panels of --help


@dataclass(frozen=True)
class DataOptions:
    """The data set, and the meaning of its columns."""

    dataset: str = option(
        help="Name of a data set (see `oneshui data list`), folder with metadata.csv, Hub id, or path that `datasets` reads.",
        path=True,
        panel=DATA,
    )
    data_dir: str | None = option(
        None, "Folder of a named data set on disk. $ONESHUI_DATA/NAME, ./NAME or ./data/NAME by default.", path=True, panel=DATA
    )
    dataset_revision: str | None = option(None, "Branch, tag or commit of a data set of the Hub. main by default.", panel=DATA)
    subset: str | None = option(None, "Configuration of the data set, if it has several (mufac: 'cleaned').", panel=DATA)
    image_column: str | None = option(None, "Your own data: the image column. Inferred by default.", panel=DATA)
    identity_column: str | None = option(None, "Your own data: the identity column. Inferred by default.", panel=DATA)
    label_columns: str | None = option(
        None, "Your own data: the label columns, separated by commas, or repeat the option. Inferred by default.", joined=True, panel=DATA
    )

    def source(self) -> dict[str, Any]:
        """Return the arguments of `load_faces`."""
        named = {name: getattr(self, name) for name in ("dataset", "data_dir", "subset", "image_column", "identity_column")}
        return named | {"revision": self.dataset_revision, "label_columns": split_names(self.label_columns or "")}


@dataclass(frozen=True)
class SplitOptions:
    """The size of the forget set, and the identities that preparation uses in simulated requests."""

    forget: int = option(5, "Number of identities in the forget set.", minimum=1, panel=DATA)
    reserve_supports: int | None = option(
        None,
        "Number of training identities with one image kept out of training, for simulated requests. One in four by default.",
        minimum=0,
        panel=DATA,
    )
    meta_identities: str = option(
        "all",
        "Identities used in simulated requests: all training identities, or only those outside the forget set.",
        choices=("all", "disjoint"),
        panel=DATA,
    )


@dataclass(frozen=True)
class TrainOptions(SplitOptions, DataOptions):
    """The training recipe. The defaults are those of the paper for CelebA."""

    download: bool = option(
        False, "If no folder of the named data set is found, train on its copy on the Hub. Asks on a terminal first.", panel=DATA
    )
    split: str | None = option(
        None, "File with the split (see `oneshui data split`). A new split is drawn by default.", path=True, panel=DATA
    )
    suppress: str | None = option(
        None, "Ledger of a request desk: the people who were forgotten are left out of all sets.", path=True, panel=DATA
    )
    model: str | None = option(
        None,
        "'tiny', local checkpoint or Hub id. ViT-B/16 (ImageNet-21k) by default; 'tiny' for the synthetic data.",
        path=True,
        panel=MODEL,
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a model of the Hub. main by default.", panel=MODEL)
    image_size: int | None = option(
        None, "Side of the input in pixels. The checkpoint's own by default.", minimum=16, maximum=2048, panel=MODEL
    )
    epochs: int = option(30, "Number of passes over the training set.", flags=("--epochs", "--num-train-epochs"), minimum=1, panel=RECIPE)
    batch_size: int = option(
        32, "Images per step and process.", flags=("--batch-size", "--per-device-train-batch-size"), minimum=1, panel=RECIPE
    )
    optimizer: str = option("sgd", "Optimizer.", choices=("sgd", "adamw"), panel=RECIPE)
    lr: float = option(1e-3, "Peak learning rate.", flags=("--lr", "--learning-rate"), minimum=0, panel=RECIPE)
    weight_decay: float = option(1e-4, "Weight decay.", minimum=0, panel=RECIPE)
    momentum: float = option(0.9, "Momentum of sgd.", minimum=0, maximum=1, panel=RECIPE)
    warmup_epochs: float = option(2.0, "Epochs of linear warm-up, before cosine decay to zero.", minimum=0, panel=RECIPE)
    augment: str = option(
        "crop",
        "'crop' is a random resized crop and a flip. With --head closed-form, 'crop' and 'flip' add mirror images.",
        choices=("crop", "flip", "none"),
        panel=RECIPE,
    )
    keep: str = option("best", "Keep the epoch with the best score on val, or the last epoch.", choices=("best", "last"), panel=RECIPE)
    sharded: int | None = option(
        None,
        "Train this many adapters on a frozen backbone, each on the identities of one shard. Forgetting then affects one adapter only.",
        minimum=2,
        panel=MODEL,
    )
    adapter_rank: int = option(16, "Rank of the adapters of --sharded.", minimum=1, panel=MODEL)
    head: str = option(
        "trained", "'closed-form' computes a head on frozen features, to forget exactly.", choices=("trained", "closed-form"), panel=MODEL
    )
    bf16: bool | None = option(
        None, "Train in bfloat16. As set for Accelerate, else where a GPU has it.", flags=("--bf16/--no-bf16",), panel=RECIPE
    )
    fp16: bool | None = option(
        None, "Train in float16 with loss scaling instead, for GPUs without bfloat16.", flags=("--fp16/--no-fp16",), panel=RECIPE
    )
    gradient_accumulation_steps: int | None = option(
        None,
        "Gradient accumulation: batches per update; Accelerate's or 1.",
        flags=("--accumulate", "--gradient-accumulation-steps"),
        minimum=1,
        panel=RECIPE,
    )
    max_memory: str | None = option(None, "Memory of the training, such as 20GiB: a batch is computed in parts that fit.", panel=RECIPE)
    compile: bool = option(False, "Compile the model for training (torch.compile).", panel=RECIPE)
    gradient_checkpointing: bool = option(
        False,
        "Gradient checkpointing: compute activations twice, for less memory.",
        flags=("--recompute", "--gradient-checkpointing"),
        panel=RECIPE,
    )
    save_steps: int | None = option(None, "Also save the training state every this many steps, within epochs.", minimum=1)
    profile: bool = option(False, "Write where the time of a step goes into the run's folder.")
    seed: int = option(0, "Seed of split, head, order and augmentation.", minimum=0, maximum=MAX_SEED)
    report_to: str = option("none", REPORT_TO, joined=True)
    output_dir: str | None = option(None, "Folder of the new run. runs/DATASET-seedSEED by default.", path=True)
    push_to_hub: str | None = option(None, "Publish the trained model in this private repository, USER/NAME; see `oneshui push`.")
    resume: bool = option(False, "Resume an interrupted training.")
    overwrite: bool = option(False, "Replace an existing run.")


@dataclass(frozen=True)
class CheckOptions(DataOptions):
    """What to check."""

    split: str | None = option(None, "Also check that no image occurs in two sets of the split in this file.", path=True, panel=DATA)
    fixed_labels: str | None = option(
        None,
        "Labels that cannot differ between images of one identity, separated by commas. 'Male' and the like by default.",
        joined=True,
        panel=DATA,
    )


@dataclass(frozen=True)
class DrawOptions(SplitOptions, DataOptions):
    """Which split to draw."""

    seed: int = option(0, "Seed of the split.", minimum=0, maximum=MAX_SEED)
    rows: str = option(
        "all",
        "Split all annotated images, as published splits do, or only those that are on disk.",
        choices=("all", "present"),
        panel=DATA,
    )
    output: str = option("split.json", "File to write.", path=True)
    overwrite: bool = option(False, "Replace an existing file.")


@dataclass(frozen=True)
class RetrainOptions:
    """What may differ between an oracle and its original model."""

    run: str | None = option(None, "Run of the original model. The newest by default.", path=True)
    data_dir: str | None = option(None, "Folder of the data set, if it has moved since training.", path=True, panel=DATA)
    seed: int | None = option(None, "Seed of order and augmentation. The original's by default.", minimum=0, maximum=MAX_SEED)
    report_to: str = option("none", REPORT_TO, joined=True)
    output_dir: str | None = option(None, "Folder of the oracle. RUN-oracle by default.", path=True)
    resume: bool = option(False, "Resume an interrupted training.")
    overwrite: bool = option(False, "Replace an existing run.")


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, for which model. The method's own options are added to these."""

    run: str | None = option(None, "Run of the original model. The newest by default.", path=True)
    method: str = option(DEFAULT_METHOD, "Unlearning method; see `oneshui methods`.", panel=METHOD)
    preset: str | None = option(
        None, "Values of the method's options: a name such as 'paper', or a file that `oneshui tune` wrote.", path=True, panel=METHOD
    )
    face_encoder: str | None = option(
        None,
        "Per-identity methods: the encoder that identifies a person by photo. 'dlib', an image model of transformers (Hub id or path) or "
        "'none'. dlib by default if installed.",
        path=True,
        panel=METHOD,
    )
    data_dir: str | None = option(None, "Folder of the data set, if it has moved since training.", path=True, panel=DATA)
    cache_dir: str | None = option(
        None, "Folder of cached models, for methods that train fold models. ~/.cache/oneshui or $ONESHUI_CACHE by default.", path=True
    )
    seed: int = option(0, "Seed of all random draws.", minimum=0, maximum=MAX_SEED)
    report_to: str = option("none", REPORT_TO, joined=True)
    simulate_batches: bool = option(
        True, "Simulate requests of up to 100 people at the end, so that `requests apply` can estimate what a batch costs the others."
    )
    dry_run: bool = option(False, "Print the estimated cost and prepare nothing.")
    save_steps: int | None = option(
        None, "Save the state of the preparation every this many steps, too. Every minute by default.", minimum=1
    )
    resume: bool = option(False, "Resume an interrupted preparation.")
    overwrite: bool = option(False, "Replace an earlier preparation, complete or not.")


@dataclass(frozen=True)
class TuneOptions:
    """How to search a method's options. Options of the method that are given keep their value; the others are searched."""

    run: str | None = option(None, "Run of the original model. The newest by default.", path=True)
    method: str = option(DEFAULT_METHOD, "Unlearning method; see `oneshui methods`.", panel=METHOD)
    trials: int = option(20, "Number of settings to try. The first are the defaults.", minimum=1, panel=RECIPE)
    requests: int = option(3, "Largest number of simulated requests on which a setting is scored.", minimum=1, panel=RECIPE)
    sample: int = option(256, "Largest number of images per set on which a setting is scored.", minimum=2, panel=RECIPE)
    retain_budget: float = option(
        5.0,
        "Largest loss of score on the retain set, in points. A setting that exceeds it is taken only if all settings do.",
        minimum=0,
        formerly=("damage",),
        panel=RECIPE,
    )
    data_dir: str | None = option(None, "Folder of the data set, if it has moved since training.", path=True, panel=DATA)
    cache_dir: str | None = option(None, "Folder of cached models, as for `prepare`.", path=True)
    seed: int = option(0, "Seed of all random draws.", minimum=0, maximum=MAX_SEED)
    output: str | None = option(None, "Preset file to write. RUN/tuned/METHOD.json by default.", path=True)
    save_steps: int | None = option(None, "Save the state of a preparation every this many steps, too, as for `prepare`.", minimum=1)
    resume: bool = option(False, "Resume an interrupted search, or add trials.")
    overwrite: bool = option(False, "Replace an existing file.")


@dataclass(frozen=True)
class UnlearnOptions:
    """One request. The method's own options are added to these."""

    run: str | None = option(None, "Run of the model. The newest original by default.", path=True)
    images: tuple[str, ...] = option((), "Support image. Repeat the option for several images.", flags=("--image",), path=True, panel=DATA)
    identity: tuple[str, ...] = option(
        (), "Identity on the support image, as named in the training data. Once, or once per image.", panel=DATA
    )
    labels: tuple[str, ...] = option(
        (),
        "Labels of the support image, as 'Smiling,Young', or its class. Once, or once per image; of one image, also once per label. "
        "Predicted by default.",
        panel=DATA,
    )
    from_split: bool = option(False, "Use the support images of the run's own split.", panel=DATA)
    data_dir: str | None = option(None, "With --from-split: folder of the data set, if it has moved.", path=True, panel=DATA)
    method: str | None = option(
        None, "Unlearning method; see `oneshui methods`. Chosen by what the run has prepared by default, exact methods first.", panel=METHOD
    )
    preset: str | None = option(
        None,
        "Values of the options that `unlearn` reads: a name or a file, as for `prepare`. Those of the preparation by default.",
        path=True,
        panel=METHOD,
    )
    face_encoder: str | None = option(
        None,
        "Per-identity methods, without --identity: the encoder that the identities were enrolled with, as for `prepare`. That of the "
        "preparation by default, if it was made on this machine.",
        path=True,
        panel=METHOD,
    )
    keep: bool | None = option(
        None,
        "Keep or destroy what was prepared for the forget identities, once the new model is written. Destroyed with --image, kept with "
        "--from-split by default.",
        flags=("--keep/--destroy",),
        panel=METHOD,
    )
    force: bool = option(False, "Apply a preparation that was made for other weights.", panel=METHOD)
    seed: int = option(0, "Seed of all random draws.", minimum=0, maximum=MAX_SEED)
    output_dir: str | None = option(None, "Folder of the new model. RUN-METHOD by default.", path=True)
    overwrite: bool = option(False, "Replace an existing run.")

    @property
    def method_name(self) -> str:
        """The method, which `method_choice.with_method` fills in where the request names none."""
        assert self.method is not None
        return self.method


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure, against which models."""

    run: str | None = option(None, "Run to evaluate. The newest run of any kind by default.", path=True)
    oracle: str | None = option(None, "Run of the oracle. ORIGINAL-oracle by default, if it exists.", path=True, panel=MODEL)
    original: str | None = option(None, "Run of the original model. The parent of RUN by default.", path=True, panel=MODEL)
    references: int = option(
        0,
        "Oracles of other seeds as references for RMIA, U-LiRA, IAM, the range attack and the noise floor; missing ones are trained.",
        minimum=0,
        maximum=8,
        panel=EVALUATION,
    )
    queries: int = option(
        2, "Number of views of each image that RMIA queries: original, mirrored, shifted.", minimum=1, maximum=8, panel=EVALUATION
    )
    rmia_a: float = option(
        0.3, "RMIA: parameter a of the estimate p(x) = (1 + a)/2 p_out(x) + (1 - a)/2.", minimum=0, maximum=1, panel=EVALUATION
    )
    rmia_gamma: float = option(2.0, "RMIA: likelihood ratio above which one image dominates another.", minimum=1, panel=EVALUATION)
    resamples: int = option(1000, "Number of bootstrap resamples of identities per interval.", minimum=100, panel=EVALUATION)
    relearn_steps: int = option(
        0, "Largest number of training steps in the relearning test. 0 skips the test.", minimum=0, panel=EVALUATION
    )
    attacks: str = option(
        "default",
        "'all' also runs the attacks that need weights and photos: training on one photo, rounded weights, reconstruction, features.",
        choices=("default", "all"),
        panel=EVALUATION,
    )
    data_dir: str | None = option(None, "Folder of the data set, if it has moved since training.", path=True, panel=DATA)
    cache_dir: str | None = option(None, "Folder of cached reference models; see `oneshui cache`.", path=True)
    batch_size: int = option(64, "Images per forward pass and process.", flags=("--batch-size", "--per-device-eval-batch-size"), minimum=1)


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which grid to run, and where."""

    grid: str = option(help="YAML file, or a built-in grid: 'demo' or 'paper'.", path=True)
    data_dir: tuple[str, ...] = option((), "NAME=DIR: folder of a data set of the grid. Once per data set.", panel=DATA)
    output_dir: str | None = option(
        None, "Folder of the benchmark. benchmarks/GRID by default. An existing benchmark is resumed.", path=True
    )
    cache_dir: str | None = option(None, "Folder of cached models. 'cache' in the benchmark's folder by default.", path=True)
    shard: str | None = option(None, "I/N: run the I-th of N parts. Machines that share the folder run the others.")
    report_to: str = option("none", REPORT_TO, joined=True)
    dry_run: bool = option(False, "Print the jobs and their estimated cost, and run nothing.")
    retry: bool = option(False, "Run failed jobs again.")
    keep_models: bool = option(False, "Keep unlearned weights. By default only predictions are kept.")
    check: str | None = option(
        None,
        "JSON file of expected values: print the cells of the tables that differ by more than their tolerance, and end with exit code 1 if "
        "there are any. A complete benchmark is not run again.",
        path=True,
    )


@dataclass(frozen=True)
class DemoOptions:
    """Where the demo writes."""

    output_dir: str = option("demo", "Folder of the demo's runs.", path=True)
    seed: int = option(0, "Seed of all random draws.", minimum=0, maximum=MAX_SEED)
    overwrite: bool = option(False, "Replace an earlier demo.")


@dataclass(frozen=True)
class RunsOptions:
    """Where to look for runs."""

    root: str = option(str(RUNS), "Folder that holds the runs.", path=True)


@dataclass(frozen=True)
class ShowOptions:
    """Which run to describe."""

    run: str | None = option(None, "Run to describe. The newest run of any kind by default.", path=True)


@dataclass(frozen=True)
class PredictOptions:
    """Which model predicts, and for which images."""

    run: str | None = option(None, "Run of the model.", path=True)
    images: tuple[str, ...] = option((), "Image files.", path=True)
    top_k: int = option(5, "Number of labels to print per image, the most probable first.", minimum=1)


@dataclass(frozen=True)
class ReportOptions:
    """What is reported, and where."""

    source: str = option(help="Evaluated run, or folder of a benchmark.", path=True)
    output: str | None = option(None, "HTML file to write. SOURCE/report.html by default. Figures are written next to it.", path=True)
    with_images: bool = option(False, "Of a run: embed the support images. Do not share such a report.")
    data_dir: str | None = option(
        None, "With --with-images: folder of the data set, if it has moved since training.", path=True, panel=DATA
    )
    overwrite: bool = option(False, "Replace an existing report.")
