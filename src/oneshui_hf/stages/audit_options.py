"""The options of `oneshui audit`, and their checks before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..name_lists import split_names
from ..options import flag, option
from ..runs import RECORD, require_writable_place
from .command_options import DATA, MAX_SEED, MODEL

AUDIT = "audit.json"
REPORT = "report.html"  # that `oneshui report` writes next to an audit by default


@dataclass(frozen=True)
class AuditOptions:
    """Which two models are compared, and on whose photos."""

    unlearned: str = option(help="Unlearned model: folder of a run or of a transformers model with safetensors, or Hub id.", path=True)
    original: str = option(help="Model before unlearning: folder or Hub id.", path=True, panel=MODEL)
    candidates: str = option(help="Folder of photos: one sub-folder per person, or photos with a metadata.csv.", path=True, panel=DATA)
    oracle: str | None = option(
        None, "Model retrained without the forget identities, folder or Hub id: its difference is the floor.", path=True, panel=MODEL
    )
    forgotten: tuple[str, ...] = option((), "Candidate who is known to be forgotten. Repeat the option for several.", panel=DATA)
    image_column: str | None = option(None, "metadata.csv: the image column. Inferred by default.", panel=DATA)
    identity_column: str | None = option(None, "metadata.csv: the identity column. Inferred by default.", panel=DATA)
    label_columns: str | None = option(
        None,
        "metadata.csv: the label columns, separated by commas, or repeat the option. Columns with the labels of the model by default.",
        joined=True,
        panel=DATA,
    )
    batch_size: int = option(64, "Images per forward pass.", flags=("--batch-size", "--per-device-eval-batch-size"), minimum=1)
    seed: int = option(0, "Seed of all random draws.", minimum=0, maximum=MAX_SEED)
    output_dir: str | None = option(None, "Folder to write the audit to, for `oneshui report`. Nothing is written by default.", path=True)
    keep_names: bool = option(False, "Write the names of the candidates into the folder. Numbers by default.")
    overwrite: bool = option(False, "Replace an earlier audit.")

    def label_names(self) -> tuple[str, ...]:
        """Return the names of the label columns."""
        return split_names(self.label_columns or "")

    def column_flags(self) -> list[str]:
        """Return the options that name a column of metadata.csv."""
        return [flag(name) for name in ("image_column", "identity_column", "label_columns") if getattr(self, name)]


def check_audit(options: AuditOptions) -> None:
    """Check the options of an audit.

    Raises:
        UsageError: A model or the photos do not exist, an option does not apply, or the output may not be written.
    """
    for name in ("unlearned", "original", "oracle"):
        if (source := getattr(options, name)) is not None and not (Path(source).exists() or is_hub_id(source)):
            where = "the unlearned model" if name == "unlearned" else flag(name)
            raise UsageError(f"'{source}' is neither a folder nor a Hub id (USER/NAME); name {where} by one of them.")
    folder = Path(options.candidates)
    if not folder.is_dir():
        raise UsageError(f"--candidates {folder} is not a folder; name one with photos, one sub-folder per person.")
    if options.keep_names and not options.output_dir:
        raise UsageError("--keep-names is for the folder of --output-dir; add that, or omit it.")
    if options.output_dir:
        _require_writable_audit(Path(options.output_dir), overwrite=options.overwrite)


def is_hub_id(source: str) -> bool:
    """Return whether a name that is no path may be a Hub id."""
    return source.count("/") == 1 and not source.startswith((".", "~", "/"))


def has_audit(folder: Path) -> bool:
    """Return whether a folder is that of an audit. A run may be an audited model, but its folder is no audit's."""
    return (folder / AUDIT).is_file() and not (folder / RECORD).exists()


def _require_writable_audit(folder: Path, *, overwrite: bool) -> None:
    require_writable_place(folder.resolve(), "a folder", "--output-dir")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if {entry.name for entry in folder.iterdir()} - {REPORT} != {AUDIT}:
        raise UsageError(f"{folder} contains other files than an audit, so it is not replaced; name another --output-dir.")
    if not overwrite:
        raise UsageError(f"{folder} contains an earlier audit; replace it with --overwrite, or name another --output-dir.")
