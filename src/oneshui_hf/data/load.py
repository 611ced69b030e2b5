"""From `--dataset NAME_OR_PATH` to an indexed data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, did_you_mean
from ..plugins import DATASETS, Plugins
from .schema import Faces, index

FOLDER = "folder"  # the builder that reads a path


def load_faces(dataset: str, data_dir: str | Path | None = None, label_columns: Sequence[str] = ()) -> Faces:
    """Read a data set, from its Arrow cache where its files have not changed.

    Args:
        dataset: A builder's name, or the path of a folder with `metadata.csv`.
        data_dir: Where a named data set lies on disk, or a folder that has moved.
        label_columns: Which columns of a folder's metadata are labels; guessed where empty.

    Raises:
        UsageError: The name is unknown, or an option does not fit it.
        OneshuiError: The files are missing or damaged.
    """
    import datasets

    plugins = Plugins(DATASETS)
    name, config = dataset, {}
    data_dir = Path(data_dir).expanduser().resolve() if data_dir else None
    if dataset not in plugins.names or dataset == FOLDER:
        name, data_dir = FOLDER, _folder(dataset, data_dir, plugins.names)
        config = {"label_columns": tuple(label_columns)} if label_columns else {}
    elif label_columns:
        raise UsageError(f"--label-columns goes with a folder of your own, not with '{dataset}'.")
    builder_class = plugins.load(name)
    if data_dir and not builder_class.reads_folder:
        raise UsageError(f"--data-dir goes with a data set that is read from disk, not with '{dataset}'.")
    fingerprint = builder_class.fingerprint(data_dir)
    builder = builder_class(data_dir=str(data_dir) if data_dir else None, hash=fingerprint, **config)
    quiet = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None  # our own sentence lies beneath
    finally:
        if quiet:
            datasets.enable_progress_bars()
    notes = tuple(line for line in (builder.info.description or "").splitlines() if line.endswith("left out."))
    title = data_dir.name if name == FOLDER and data_dir else name
    return index(builder.as_dataset(split="train"), title, Path(builder.cache_dir), notes)


def split_columns(text: str | None) -> tuple[str, ...]:
    """Read `--label-columns a,b`."""
    return tuple(text.split(",")) if text else ()


def _folder(dataset: str, data_dir: Path | None, names: Sequence[str]) -> Path:
    """Return the folder to read: `data_dir` where it is given, since the one that a run was trained on may have moved."""
    from .builders.folder import METADATA

    if data_dir is None:
        path = Path(dataset).expanduser()
        if path.is_dir():
            return path.resolve()
    elif dataset == FOLDER or Path(dataset).name != dataset or (data_dir / METADATA).is_file():
        return data_dir
    # A single word with a folder that is not one of ours is more likely a data set's name with a typing error.
    raise UsageError(f"'{dataset}' is neither a data set nor a folder.{did_you_mean(dataset, names)}")
