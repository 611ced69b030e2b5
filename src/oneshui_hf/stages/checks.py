"""Checks of a command's options that read neither data nor weights.

`api` makes them before torch is imported, so that a usage error appears at once. The stages make them as well: a benchmark calls stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.images import ImageError
from ..errors import NotResumableError, OneshuiError, UsageError, did_you_mean
from ..methods.base import Method
from ..methods.resume import UNFINISHED, ResumeState
from ..name_lists import match_names
from ..options import flag
from ..plugins import DATASETS, METHODS, Plugins
from ..public_names import TINY
from ..runs import RECORD, ROWS, RUNS, SPLIT, TUNED, Kind, Run, read_object, require_writable, require_writable_file
from .audit_options import has_audit
from .command_options import (
    DataOptions,
    DemoOptions,
    EvaluateOptions,
    PredictOptions,
    PrepareOptions,
    ReportOptions,
    RetrainOptions,
    TrainOptions,
    TuneOptions,
    UnlearnOptions,
)
from .compared_runs import find_original, open_oracle
from .presets import preset_values
from .publishing.options import PullOptions, PushOptions
from .tracking import check_report_to
from .training.recipe import require_consistent_recipe

FOLDER = "folder"  # the plugin that reads a path
NO_ENCODER = "none"  # of --face-encoder


def check_source(options: DataOptions) -> None:
    """Check the name of a data set and the options of its columns.

    Raises:
        UsageError: The name is neither a data set nor a path, `--data-dir` is no folder, or an option does not apply.
    """
    names = Plugins(DATASETS).names
    if options.data_dir and not Path(options.data_dir).is_dir():
        raise UsageError(f"--data-dir {options.data_dir} is not a folder; name the folder of the data set.")
    if options.dataset in names and options.dataset != FOLDER:
        for name in ("image_column", "identity_column", "label_columns"):
            if getattr(options, name):
                raise UsageError(f"{flag(name)} applies to your own folder or table, not to '{options.dataset}'.")
    elif options.dataset != FOLDER and not options.data_dir and not _may_exist(options.dataset):
        raise UsageError(f"'{options.dataset}' is neither a data set nor a folder.{did_you_mean(options.dataset, names)}")


def require_data_dir(options: DataOptions) -> None:
    """Check that a named data set gets the folder that it is read from, if it is read from one. This imports `datasets`.

    Raises:
        UsageError: The folder is missing, or the data set has none.
    """
    if options.dataset not in Plugins(DATASETS).names or options.dataset == FOLDER:
        return
    builder = Plugins(DATASETS).load(options.dataset)
    if options.data_dir and not builder.reads_folder:
        raise UsageError(f"--data-dir applies to data sets that are read from disk, not to '{options.dataset}'.")
    if not options.data_dir and builder.reads_folder and builder.layout:
        builder.layout.locate(None)


def _may_exist(source: str) -> bool:
    """Whether a name is a path that exists, or may be a Hub id."""
    return Path(source).exists() or (source.count("/") == 1 and not source.startswith((".", "~", "/")))


def check_train(options: TrainOptions) -> Path:
    """Check the options of a training and return the folder of its run."""
    check_source(options)
    if options.split and not Path(options.split).is_file():
        raise UsageError(f"Split file {options.split} does not exist; `oneshui data split` writes one, and every run has its {SPLIT}.")
    if options.suppress and not Path(options.suppress).is_file():
        raise UsageError(f"There is no ledger at {options.suppress}; name the ledger.jsonl of a request desk.")
    if options.model_revision is not None and options.model and (options.model == TINY or Path(options.model).exists()):
        raise UsageError(f"--model-revision applies to models of the Hub, not to '{options.model}'; omit it.")
    if options.model and options.model.startswith((".", "~", "/")) and not Path(options.model).exists():
        raise UsageError(f"Checkpoint '{options.model}' does not exist; name a folder, or a model of the Hub.")
    require_consistent_recipe(options)
    check_report_to(options.report_to)
    path = Path(options.output_dir or RUNS / f"{Path(options.dataset).resolve().name}-seed{options.seed}")
    if options.resume:
        open_interrupted(path, "original", options)
    else:
        require_writable(path, overwrite=options.overwrite)
    require_data_dir(options)
    return path


def check_retrain(original: Run, options: RetrainOptions) -> Path:
    """Check the options of an oracle's training and return the folder of its run."""
    if original.require_finished().require_split().record.kind != "original":
        raise UsageError(f"{original.path} is an {original.record.kind} model; name the original model with --run.")
    check_report_to(options.report_to)
    path = Path(options.output_dir or f"{original.path}-oracle")
    if options.resume:
        open_interrupted(path, "oracle", options)
    else:
        require_writable(path, overwrite=options.overwrite, source=original.path)
    return path


def open_interrupted(path: Path, kind: Kind, options: TrainOptions | RetrainOptions) -> Run:
    """Open the run that `--resume` continues."""
    if options.overwrite:
        raise UsageError("--resume continues a run and --overwrite replaces it; give one of them.")
    run = Run.open(path)
    if run.record.kind != kind:
        raise UsageError(f"{path} is an {run.record.kind} model's run, not an {kind} model's; name another --output-dir.")
    if run.record.state != "complete":
        try:
            run.require_split()
        except OneshuiError:
            raise NotResumableError(
                f"{path / SPLIT} is missing or not the one that the training started with; restore it, or start again with --overwrite."
            ) from None
    return run


def check_prepare(run: Run, options: PrepareOptions, given: Mapping[str, Any]) -> None:
    """Check the options of a preparation, and those of its method."""
    name, method_class = options.method, _load(options.method)
    check_preparation(name, method_class, options)
    check_report_to(options.report_to)
    require_writable_artefact(run.require_finished().artefact(name), options)
    method_class.prepare_options(name, preset_values(run, name, method_class, options.preset), given)


def check_preparation(name: str, method_class: type[Method[Any]], options: PrepareOptions) -> None:
    """Check that a method prepares something, and that `--face-encoder` applies to it."""
    if method_class.prepares == "never":
        raise UsageError(f"Method '{name}' has nothing to prepare; continue with `oneshui unlearn --method {name}`.")
    _check_encoder(name, method_class, options.face_encoder)


def _check_encoder(name: str, method_class: type[Method[Any]], encoder: str | None) -> None:
    """Check that `--face-encoder` applies to a method."""
    if encoder not in (None, NO_ENCODER) and not method_class.per_identity:
        raise UsageError(f"--face-encoder is for methods that act on each identity separately, and '{name}' does not; omit it.")


def check_tune(run: Run, options: TuneOptions, given: Mapping[str, Any]) -> Path:
    """Check the options of a search, and those of its method; return the preset file."""
    _load(options.method).prepare_options(options.method, {}, given)
    file = Path(options.output or run.path / TUNED / f"{options.method}.json")
    require_writable_preset(file, options)
    if run.require_finished().record.kind == "oracle":
        raise UsageError(f"{run.path} is an oracle, which has no identity to forget; tune on the original model.")
    return file


def check_request(options: UnlearnOptions) -> None:
    """Check that a request gives photos or takes those of the split, and no option that contradicts this."""
    if options.images and options.from_split:
        raise UsageError("--image and --from-split exclude each other; give one of them.")
    if not options.images and not options.from_split:
        raise UsageError("Give a photo with --image FILE, or use the split's own request with --from-split.")
    if options.images and options.data_dir:
        raise UsageError("--data-dir is for --from-split; a request with --image reads no data set.")
    if options.face_encoder and (options.identity or options.from_split):
        raise UsageError("--face-encoder identifies a person by photo, which --identity and --from-split name already; give one of them.")


def check_unlearn(run: Run, options: UnlearnOptions, given: Mapping[str, Any] | None = None, *, files: bool = True) -> Path:
    """Check the options of a request, and those of its method; return the folder of the new run.

    Args:
        run: The model.
        options: The request and the method.
        given: Options of the method.
        files: Whether the images are files, which must exist.
    """
    check_applied_method(options, given)
    path = Path(options.output_dir or f"{run.path}-{options.method_name}")
    require_writable(path, overwrite=options.overwrite, source=run.require_finished().path)
    if options.images:
        per_photo(options.identity, len(options.images), "--identity")
        labels, kind = run.record.dataset.get("labels"), run.record.dataset.get("task")
        if isinstance(labels, list):
            named_labels(options, labels, one_class=kind == "single_label")
    require_images(options.images if files else ())
    return path


def check_applied_method(options: UnlearnOptions, given: Mapping[str, Any] | None = None) -> None:
    """Check the method of a request: its options, and whether it can be applied to photos."""
    name, method_class = options.method_name, _load(options.method_name)
    if given:
        method_class.apply_options(name, {}, given)
    check_request(options)
    if options.images and not method_class.needs.one_shot:
        reads = ", ".join(sorted(method_class.needs.apply - {"support"}))
        raise UsageError(f"Method '{name}' reads {reads} at request time, so one photo is not enough; run it with --from-split.")
    _check_encoder(name, method_class, options.face_encoder)


def require_images(images: Sequence[str]) -> None:
    """Check that photos exist."""
    for image in images:
        if not Path(image).exists():
            raise ImageError(f"{image} does not exist.")


def per_photo(values: Sequence[str], photos: int, flag: str) -> tuple[str, ...]:
    """Return one value per photo; a single value applies to all photos."""
    if len(values) not in (0, 1, photos):
        raise UsageError(f"{flag} is given {len(values)} times for {photos} photo{'s' * (photos > 1)}; give it once, or once per photo.")
    return tuple(values) * photos if len(values) == 1 else tuple(values)


def named_labels(options: UnlearnOptions, known: Sequence[str], *, one_class: bool) -> list[tuple[str, ...]]:
    """Return the names of each photo's labels; nothing if no label is given.

    A text is tried as one name first, since a name may contain a comma, and then split at commas. Several texts for one photo are the
    labels of this photo.

    Raises:
        UsageError: A label is unknown, the number of texts does not fit the photos, or a photo has two classes.
    """
    photos = len(options.images)
    texts = [options.labels] if photos == 1 else [(text,) for text in per_photo(options.labels, photos, "--labels")]
    found = [match_names(words, known) for words in texts if words]
    for words, names in zip(texts, found, strict=False):
        for name in names:
            if name not in known:
                raise UsageError(f"The model has no label '{name}'.{did_you_mean(name, known)}")
        if one_class and len(names) != 1:
            raise UsageError(f"This model predicts one class per photo, so --labels takes one, not '{', '.join(words)}'.")
    return found


def check_evaluate(run: Run, options: EvaluateOptions) -> None:
    """Check the options of an evaluation."""
    run.require_finished().require_split()
    original = find_original(run, options.original)
    if options.oracle:
        open_oracle(options.oracle)
    if options.references and original is None:
        raise UsageError("--references trains oracles with the recipe of the original model, which is not known; name it with --original.")


def check_predict(run: Run, options: PredictOptions) -> None:
    """Check the options of a prediction."""
    if not options.images:
        raise UsageError("predict needs an image file: oneshui predict RUN IMAGE...")
    require_images(options.images)
    run.require_finished()


def check_report(options: ReportOptions) -> Run | None:
    """Check the options of a report; return the run, or None if the source is a benchmark."""
    source = Path(options.source)
    run = _open_source(source, options)
    require_writable_report(*report_files(options), options.overwrite)
    return run


def report_files(options: ReportOptions) -> tuple[Path, Path]:
    """Return the HTML file of a report and the folder of its figures."""
    name = "report-private.html" if options.with_images else "report.html"
    output = Path(options.output) if options.output else Path(options.source) / name
    return output, output.with_name(f"{output.stem}-figures")


def _open_source(source: Path, options: ReportOptions) -> Run | None:
    """Return the run in a folder; None if the folder is a benchmark."""
    if not source.is_dir():
        raise UsageError(f"Folder {source} does not exist; name a run, or the folder of a benchmark.")
    if options.data_dir and not options.with_images:
        raise UsageError("--data-dir is the folder of the photos, which only --with-images reads; leave it out.")
    if (source / RECORD).is_file():
        return Run.open(source)
    is_audit = has_audit(source)
    if not is_audit and not (source / ROWS).is_dir():
        raise UsageError(f"{source} is neither a run (it has no {RECORD}) nor a benchmark (it has no folder {ROWS}).")
    if options.with_images:
        kind = "an audit" if is_audit else "a benchmark"
        raise UsageError(f"{source} is {kind}, and its report shows no photos; name a run with --with-images.")
    return None


def require_writable_report(output: Path, folder: Path, overwrite: bool) -> None:
    """Check that the report can be written.

    Raises:
        UsageError: Its folder is missing or not writable, or the report exists and may not be replaced.
    """
    if not output.parent.is_dir():
        raise UsageError(f"Folder {output.parent} does not exist; create it, or name another file with --output.")
    require_writable_file(output, overwrite=overwrite)
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder} exists; name another file with --output, or replace it with --overwrite.")
    if folder.exists() and not (folder.is_dir() and all(file.suffix == ".svg" for file in folder.iterdir())):
        raise UsageError(f"{folder} contains other files than figures, so it is not replaced; name another file with --output.")


def check_demo(options: DemoOptions) -> None:
    """Check the folder of a demo."""
    folder = Path(options.output_dir)
    if (folder / "original" / RECORD).exists():
        if not options.overwrite:
            raise UsageError(f"{folder} contains an earlier demo; replace it with --overwrite, or name another --output-dir.")
    else:
        require_writable(folder, overwrite=False)


def check_people_flags(options: PushOptions) -> None:
    """Check that both flags for per-identity data are given, or none."""
    if options.with_people and not options.people_are_personal_data:
        raise UsageError(
            "--with-people publishes the encrypted per-identity data of the artefacts; it is personal data, anyone who obtains the "
            "secrets can read it, and publication cannot be undone. Add --people-are-personal-data to confirm."
        )
    if options.people_are_personal_data and not options.with_people:
        raise UsageError("--people-are-personal-data needs --with-people; without it no per-identity data is sent.")


def check_pull(options: PullOptions) -> Path:
    """Check the options of a download and return the folder of its run."""
    path = Path(options.output_dir or RUNS / options.repo_id.rpartition("/")[2])
    require_writable(path, overwrite=options.overwrite)
    return path


def resume_folder(folder: Path) -> Path:
    """Return the folder of an artefact's resume state. It is never published."""
    return folder.with_name(f".{folder.name}{UNFINISHED}")


def require_writable_artefact(folder: Path, options: PrepareOptions) -> None:
    """Check that the artefact may be written.

    Raises:
        UsageError: It exists, or the options do not match the existence of an interrupted preparation.
    """
    if options.resume and options.overwrite:
        raise UsageError("--resume continues a preparation and --overwrite replaces it; give one of them.")
    if options.dry_run or options.overwrite:
        return
    interrupted = ResumeState(resume_folder(folder)).exists
    if options.resume and not interrupted:
        raise UsageError(f"There is no interrupted preparation of {folder} to resume; omit --resume.")
    if interrupted and not options.resume:
        raise UsageError(f"The preparation of {folder} was interrupted; continue with --resume, or start again with --overwrite.")
    if folder.exists() and not options.resume:  # with --resume, the preparation was started with --overwrite
        raise UsageError(f"{folder} exists; prepare again with --overwrite.")


def require_writable_preset(file: Path, options: TuneOptions) -> None:
    """Check that the preset file may be written, before any long computation.

    Raises:
        UsageError: The options exclude each other, the name is wrong, or the file may not be written, resumed or replaced.
    """
    if options.resume and options.overwrite:
        raise UsageError("--resume continues a search and --overwrite replaces it; give one of them.")
    if file.suffix != ".json":
        raise UsageError(f"--output {file} must end in .json, so that --preset recognises it as a file.")
    require_writable_file(file, overwrite=options.resume or options.overwrite, resumable=True)
    if file.exists() and options.overwrite and "trials" not in read_object(file):
        raise UsageError(f"{file} is not a preset, so --overwrite does not replace it; name another file with --output.")


def _load(method: str) -> type[Method[Any]]:
    found: type[Method[Any]] = Plugins(METHODS).load(method)
    return found
