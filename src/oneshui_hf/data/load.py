"""From `--dataset NAME_OR_PATH` to an indexed data set."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError, did_you_mean
from ..plugins import DATASETS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import write_json
from .column_inference import METADATA
from .images import SUFFIXES
from .schema import Faces, LeftOut, index

if TYPE_CHECKING:
    from .builders.base import FaceBuilder

FOLDER = "folder"  # the builder that reads a path

REMOVED = "near-duplicates.json"


def load_faces(
    dataset: str,
    data_dir: str | Path | None = None,
    label_columns: Sequence[str] = (),
    *,
    subset: str | None = None,
    image_column: str | None = None,
    identity_column: str | None = None,
    reporter: Reporter = SILENT,
) -> Faces:
    """Read a data set, from its Arrow cache where its files have not changed.

    Args:
        dataset: A builder's name, the path of a folder with `metadata.csv`, or any path or Hub id that `datasets.load_dataset` reads.
        data_dir: Where a named data set lies on disk, or a folder that has moved.
        label_columns: Which columns are labels; guessed where empty.
        subset: The data set's configuration.
        image_column: Which column is the photo; guessed where None.
        identity_column: Which column is the person; guessed where None.
        reporter: For progress.

    Raises:
        UsageError: The name is unknown, or an option does not fit it.
        OneshuiError: The files are missing or damaged.
    """
    columns = {"image_column": image_column, "identity_column": identity_column, "label_columns": tuple(label_columns)}
    builder, title = open_builder(dataset, data_dir, subset, columns)
    if builder is None:
        return _read_any(title, subset, columns)
    builder.reporter = reporter
    with _quiet():
        builder.download_and_prepare()
    cache = Path(builder.cache_dir)
    with _sound(cache):
        left_out, dataset = LeftOut(**json.loads(builder.info.description)), builder.as_dataset(split="train")
    if left_out.near_duplicates:
        write_json(cache / REMOVED, left_out.near_duplicates)
        left_out.notes.append(f"Near-duplicates are left out; {cache / REMOVED} lists them and what each repeats.")
    return index(dataset, title, cache, left_out)


def _read_any(place: str, subset: str | None, columns: dict[str, Any]) -> Faces:
    from .any_dataset import read_any
    from .builders.folder import LAYOUT

    try:
        return read_any(place, subset, **columns)
    except UsageError:
        raise
    except OneshuiError as error:
        hint = LAYOUT.elsewhere(Path(place)) if Path(place).is_dir() else None
        raise OneshuiError(f"{error} {hint}" if hint else str(error)) from None


def load_photos(
    dataset: str, data_dir: str | Path | None = None, *, subset: str | None = None, reporter: Reporter = SILENT, **columns: Any
) -> dict[str, list[str]]:
    """Return the photos of each person as the annotations have them, whether or not the images are there.

    The arguments are those of `load_faces`, and so is what is raised.
    """
    builder, _ = open_builder(dataset, data_dir, subset, columns)
    if builder is None:  # all rows of a table have their photo
        return load_faces(dataset, data_dir, subset=subset, **columns).photos()
    builder.reporter = reporter
    found = builder.annotations()
    if found.by_looks and (absent := list(found.images).count(None)):
        raise UsageError(
            f"{absent:,} photos are not there, and what belongs to subset '{subset}' depends on all of them; "
            "get them, or split what is there with --rows present."
        )
    return found.photos()


def open_builder(dataset: str, data_dir: str | Path | None, subset: str | None, columns: dict[str, Any]) -> tuple[FaceBuilder | None, str]:
    """Return the builder that reads a data set, None where `datasets` itself does, and what to call the data set.

    Raises:
        UsageError: The name is unknown, or an option does not fit it.
        OneshuiError: The files are missing.
    """
    plugins = Plugins(DATASETS)
    place = Path(data_dir).expanduser().resolve() if data_dir else None
    if dataset not in plugins.names or dataset == FOLDER:
        source = _place(dataset, place, plugins.names)
        if isinstance(source, str) or not (source / METADATA).is_file():
            return None, str(source)
        name, place, config = FOLDER, source, {key: value for key, value in columns.items() if value}
        _refuse_subset(dataset, subset)
    else:
        name, config = dataset, {}
        if given := [key for key, value in columns.items() if value]:
            raise UsageError(f"--{given[0].replace('_', '-')} goes with a folder or table of your own, not with '{dataset}'.")
    builder_class = plugins.load(name)
    if place and not builder_class.reads_folder:
        raise UsageError(f"--data-dir goes with a data set that is read from disk, not with '{dataset}'.")
    if subset is not None and name != FOLDER:
        known = sorted(builder_class.builder_configs)
        if not known:
            _refuse_subset(dataset, subset)
        if subset not in known:
            raise UsageError(f"'{dataset}' has no subset '{subset}'; it has {' and '.join(known)}.")
        config["config_name"] = subset
    fingerprint = builder_class.fingerprint(place)
    with _sound():
        builder = builder_class(data_dir=str(place) if place else None, hash=fingerprint, **config)
    return builder, place.name if name == FOLDER and place else name


def _refuse_subset(dataset: str, subset: str | None) -> None:
    if subset is not None:
        raise UsageError(f"'{dataset}' has no subsets; leave --subset out.")


@contextlib.contextmanager
def _sound(cache: Path | None = None) -> Iterator[None]:
    """Tell a damaged Arrow cache in one sentence."""
    import datasets
    import pyarrow as pa

    try:
        yield
    except OneshuiError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        where = cache or datasets.config.HF_DATASETS_CACHE
        raise OneshuiError(f"The Arrow data in {where} is damaged ({error}); remove that folder and run again.") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars of `datasets` away, and let our own sentences through its wrapping."""
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None  # our own sentence lies beneath
    finally:
        if bars:
            datasets.enable_progress_bars()


def _place(dataset: str, data_dir: Path | None, names: Sequence[str]) -> Path | str:
    """Return the folder or file to read, or the Hub id.

    `data_dir` comes first where it is given, since the folder that a run was trained on may have moved.
    """
    if dataset == FOLDER and data_dir is None:
        raise UsageError("Name the folder to read: --dataset PATH.")
    if data_dir is not None:
        if dataset == FOLDER or Path(dataset).name != dataset or (data_dir / METADATA).is_file():
            return data_dir
    else:
        path = Path(dataset).expanduser()
        if path.suffix.lower() in SUFFIXES and path.is_file():
            raise UsageError(f"{dataset} is a photo, not a data set; name a folder or a table of photos.")
        if path.exists():
            _refuse_layout(path.resolve())
            return path.resolve()
        if dataset.count("/") == 1 and not dataset.startswith((".", "~", "/")):
            return dataset
    # A single word with a folder that is not one of ours is more likely a data set's name with a typing error.
    raise UsageError(f"'{dataset}' is neither a data set nor a folder.{did_you_mean(dataset, names)}")


def _refuse_layout(path: Path) -> None:
    """Refuse the folder of a data set that is known by name.

    Raises:
        UsageError: It is one; the message says how to name it.
    """
    from .builders import celeba, celebahq, mufac

    if (path / METADATA).is_file():
        return
    for layout in (celeba.LAYOUT, celebahq.LAYOUT, mufac.LAYOUT):
        if layout.whole(path):
            raise UsageError(f"{path} is laid out as {layout.name}; name it with --dataset {layout.name} --data-dir {path}.")
