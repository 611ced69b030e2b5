"""Loads the data set of `--dataset NAME_OR_PATH`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError, did_you_mean, first_line, is_machine_error
from ..option_values import expand_home
from ..plugins import DATASETS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import write_json
from .column_inference import METADATA
from .images import SUFFIXES
from .quiet import quiet
from .schema import Exclusions, Faces, index_dataset

if TYPE_CHECKING:
    from .builders.base import FaceBuilder
    from .builders.layout import Layout

FOLDER = "folder"  # the builder that reads a path
TABLE_SUFFIXES = (".csv", ".tsv")  # tables that the same builder reads
NEAR_DUPLICATES_FILE = "near-duplicates.json"


def load_faces(
    dataset: str,
    data_dir: str | Path | None = None,
    label_columns: Sequence[str] = (),
    *,
    subset: str | None = None,
    image_column: str | None = None,
    identity_column: str | None = None,
    revision: str | None = None,
    reporter: Reporter = SILENT,
) -> Faces:
    """Read a data set, from its Arrow cache if its files have not changed.

    Args:
        dataset: A builder's name, the path of a folder with `metadata.csv`, or any path or Hub id that `datasets.load_dataset` reads.
        data_dir: The folder of a named data set on disk, or the new path of a folder that was moved. See `Layout.usual_folder` for the
            default.
        label_columns: The columns of labels; inferred if empty.
        subset: The data set's configuration.
        image_column: The column of photos; inferred if None.
        identity_column: The column of identities; inferred if None.
        revision: Branch, tag or commit of a data set of the Hub; None is its main branch.
        reporter: For progress.

    Raises:
        UsageError: The name is unknown, or an option does not apply to the data set.
        OneshuiError: The files are missing or damaged.
    """
    columns = {"image_column": image_column, "identity_column": identity_column, "label_columns": tuple(label_columns)}
    builder, title = open_builder(dataset, data_dir, subset, columns, revision, reporter)
    if builder is None:
        return _read_any(title, subset, revision, columns)
    builder.reporter = reporter
    _build_arrow_cache(builder)
    cache = Path(builder.cache_dir)
    with _report_damaged_cache(cache):
        exclusions, dataset = Exclusions(**json.loads(builder.info.description)), builder.as_dataset(split="train")
    if (unused := builder.photos_without_row()) is not None:  # such photos are not part of the fingerprint
        exclusions = dataclasses.replace(exclusions, without_row=unused)
    if exclusions.near_duplicates:
        write_json(cache / NEAR_DUPLICATES_FILE, exclusions.near_duplicates)
        exclusions.notes.append(f"Near-duplicates are excluded; {cache / NEAR_DUPLICATES_FILE} lists each with the photo it duplicates.")
    return index_dataset(dataset, title, cache, exclusions)


def _read_any(place: str, subset: str | None, revision: str | None, columns: dict[str, Any]) -> Faces:
    from .any_dataset import read_any_dataset
    from .builders.folder import LAYOUT

    try:
        return read_any_dataset(place, subset, **columns, revision=revision)
    except UsageError:
        raise
    except OneshuiError as error:
        hint = LAYOUT.suggest_folder(Path(place)) if Path(place).is_dir() else None
        raise OneshuiError(f"{error} {hint}" if hint else str(error)) from None


def load_photo_keys(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    subset: str | None = None,
    revision: str | None = None,
    reporter: Reporter = SILENT,
    **columns: Any,
) -> dict[str, list[str]]:
    """Return the photo keys of each person according to the annotations, including missing images.

    Arguments and errors are those of `load_faces`.
    """
    builder, _ = open_builder(dataset, data_dir, subset, columns, revision, reporter)
    if builder is None:  # a table contains its photos
        return load_faces(dataset, data_dir, subset=subset, revision=revision, **columns).photos_by_identity()
    builder.reporter = reporter
    annotations = builder.annotations()
    if annotations.depends_on_images and (missing := list(annotations.images).count(None)):
        raise UsageError(
            f"{missing:,} photos are missing, and subset '{subset}' depends on all of them; "
            "add them, or split the existing photos with --rows present."
        )
    return annotations.photos_by_identity()


def usual_data_dir(dataset: str) -> Path | None:
    """Return the folder that a named data set is read from without `--data-dir`; None for any other, and if there is none."""
    layout = named_layout(dataset)
    return layout.usual_folder() if layout else None


def named_layout(dataset: str) -> Layout | None:
    """Return the layout of a named data set on disk; None for any other."""
    plugins = Plugins(DATASETS)
    if dataset not in plugins.names or dataset == FOLDER:
        return None
    layout: Layout | None = plugins.load(dataset).layout
    return layout


def open_builder(
    dataset: str,
    data_dir: str | Path | None,
    subset: str | None,
    columns: dict[str, Any],
    revision: str | None = None,
    reporter: Reporter = SILENT,
) -> tuple[FaceBuilder | None, str]:
    """Return the builder of a data set, or None if `datasets` reads it, and the name of the data set.

    Raises:
        UsageError: The name is unknown, or an option does not apply to the data set.
        OneshuiError: The files are missing.
    """
    plugins = Plugins(DATASETS)
    folder = Path(expand_home(str(data_dir))).resolve() if data_dir else None
    if dataset not in plugins.names or dataset == FOLDER:
        source = _resolve_source(dataset, folder, plugins.names)
        if revision is not None and isinstance(source, Path):
            _reject_revision(dataset)
        is_table = isinstance(source, Path) and source.is_file() and source.suffix.lower() in TABLE_SUFFIXES
        if isinstance(source, str) or not (is_table or (source / METADATA).is_file()):
            return None, str(source)
        name, config = FOLDER, {key: value for key, value in columns.items() if value}
        folder = source.parent if is_table else source
        if is_table and source.name != METADATA:
            config["table"] = source.name
        _reject_subset(dataset, subset)
    else:
        name, config = dataset, {}
        if revision is not None:
            _reject_revision(dataset)
        if given := [key for key, value in columns.items() if value]:
            raise UsageError(f"--{given[0].replace('_', '-')} applies to your own folder or table, not to '{dataset}'.")
    builder_class = plugins.load(name)
    if folder and not builder_class.reads_folder:
        raise UsageError(f"--data-dir applies to data sets that are read from disk, not to '{dataset}'.")
    if folder is None and (folder := usual_data_dir(dataset)):
        reporter.note(f"Data set '{dataset}' is read from {folder}, since --data-dir is not given.")
    if subset is not None and name != FOLDER:
        known = sorted(builder_class.builder_configs)
        if not known:
            _reject_subset(dataset, subset)
        if subset not in known:
            raise UsageError(f"'{dataset}' has no subset '{subset}'; it has {' and '.join(known)}.")
        config["config_name"] = subset
    if folder and "::" in str(folder):
        raise OneshuiError(f"{folder}: `datasets` reads :: in a path as an address; rename the folder.")
    source_options = {key: config[key] for key in ("table", "image_column") if key in config} if name == FOLDER else {}
    fingerprint = builder_class.fingerprint(folder, **source_options)
    with _report_damaged_cache(_cache_folder(builder_class)):
        builder = builder_class(data_dir=str(folder) if folder else None, hash=fingerprint, **config)
    own_name = Path(config["table"]).stem if "table" in config else folder.name if folder else name
    return builder, own_name if name == FOLDER else name


def _reject_revision(dataset: str) -> None:
    raise UsageError(f"--dataset-revision applies to data sets of the Hub, not to '{dataset}'; omit it.")


def _reject_subset(dataset: str, subset: str | None) -> None:
    if subset is not None:
        raise UsageError(f"'{dataset}' has no subsets; omit --subset.")


def _cache_folder(builder_class: type[FaceBuilder]) -> Path:
    """Return the folder of the Arrow caches of a builder."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / builder_class.__module__.rpartition(".")[2]


@contextlib.contextmanager
def _report_damaged_cache(cache: Path) -> Iterator[None]:
    """Report a damaged Arrow cache in one sentence. A cache that cannot be read or written, as there is no permission, is not damaged."""
    import pyarrow as pa

    try:
        yield
    except OneshuiError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if is_machine_error(error):
            raise
        raise OneshuiError(f"The Arrow data in {cache} is damaged ({first_line(error)}); remove that folder and run again.") from None


def _build_arrow_cache(builder: FaceBuilder) -> None:
    """Write the Arrow cache of a data set if it does not exist. Errors of the builder are raised unwrapped."""
    import datasets

    try:
        with quiet(datasets.utils.logging):
            builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None


def _resolve_source(dataset: str, data_dir: Path | None, names: Sequence[str]) -> Path | str:
    """Return the folder or file to read, or the Hub id.

    `data_dir` has priority, since the folder that a run was trained on may have moved.
    """
    if dataset == FOLDER and data_dir is None:
        raise UsageError("Name the folder to read: --dataset PATH.")
    if data_dir is not None:
        if Path(dataset).suffix.lower() in TABLE_SUFFIXES and (data_dir / Path(dataset).name).is_file():
            return data_dir / Path(dataset).name
        if dataset == FOLDER or Path(dataset).name != dataset or (data_dir / METADATA).is_file():
            return data_dir
    else:
        path = Path(expand_home(dataset))
        if path.suffix.lower() in SUFFIXES and path.is_file():
            raise UsageError(f"{dataset} is a photo, not a data set; name a folder or a table of photos.")
        if path.exists():
            _reject_builtin_layout(path.resolve())
            return path.resolve()
        if dataset.count("/") == 1 and not dataset.startswith((".", "~", "/")):
            return dataset
    # A single word that is no folder is more likely the misspelled name of a data set.
    raise UsageError(f"'{dataset}' is neither a data set nor a folder.{did_you_mean(dataset, names)}")


def _reject_builtin_layout(path: Path) -> None:
    """Reject the folder of a data set that has its own builder.

    Raises:
        UsageError: It is such a folder; the message states how to name the data set.
    """
    from .builders import celeba, celebahq, mufac

    if (path / METADATA).is_file():
        return
    for layout in (celeba.LAYOUT, celebahq.LAYOUT, mufac.LAYOUT):
        if layout.is_complete(path):
            raise UsageError(f"{path} has the layout of {layout.name}; name it with --dataset {layout.name} --data-dir {path}.")
