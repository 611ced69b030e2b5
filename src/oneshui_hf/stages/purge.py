"""Removes a person from what runs and caches contain in addition to weights.

    oneshui purge --identity 4711

Of a run, the data prepared for the person is destroyed with its secret; what can be made again is removed as a whole (predictions, curves,
reports, checkpoints, states of preparations); the split loses the person, who is then in no set, so that the other sets keep their meaning.
Of the caches, what was made from the person's photos is removed as a whole. The split is changed last: an interrupted call is repeated, and
finds the person again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..cache import VAULT, Cache, cache_root
from ..data.split import Split, load_split
from ..errors import OneshuiError, UsageError
from ..files import lock_output, remove, sync_folder
from ..json_text import parse_json
from ..methods.identity_store import discard_with_secrets
from ..methods.resume import STATE_FILES, UNFINISHED
from ..plugins import DATASETS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import CURVES, METRICS, PREDICTIONS, RECORD, RUNS, SPLIT, Run, hash_file, read_object, restore_replaced, write_record
from ..vault import Secrets, vault_root
from .publishing.redaction import iter_strings
from .purge_options import PurgeOptions
from .recovery import Entries, clear_killed_work, find_entries, remove_resume_states, request_lock

HIDDEN = ".oneshui-purged-"  # start of the name of an Arrow cache while it is removed
PURGED = "purged"  # in a record's report: whether people were removed from the split after the training
REMOVED = {  # of a run: what can be made again, by the pattern of its names
    PREDICTIONS: "`oneshui evaluate` makes them again",
    CURVES: "`oneshui evaluate` makes it again",
    "report*.html": "`oneshui report` makes it again",
    "report*-figures": "`oneshui report` makes them again",
    "checkpoint-*": "state of an interrupted training on the person's photos; train again",
    "shards": "state of an interrupted training on the person's photos; train again",
}
KEPT = {  # everywhere
    "weights": "they were trained on the person's photos; `oneshui unlearn` is for that",
    "source data, also downloads": "the data set belongs to you; while it has the person's photos, caches are made again from them",
    "splits, audits and lists of your own": "no command knows where they are",
    "request desk": "`oneshui requests erase` destroys the photo and the name of a request",
    "benchmarks": "their rows have no names; their cached models are entries of the cache",
    "backups and copies, also on the Hub": "no command reaches them",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What happens to a file or folder.

    Attributes:
        place: The file or folder.
        action: "removed", "destroyed", "rewritten" or "kept".
        reason: Why.
    """

    place: str
    action: str
    reason: str


def purge(options: PurgeOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Remove a person from runs and caches.

    Returns:
        `dry_run`; `runs`, the number of runs that named the person; `rows`, each with `place`, `action` and `reason`.

    Raises:
        UsageError: A run is missing, or nothing names the person.
        OneshuiError: Another process writes a run, or the data prepared for the person could not be destroyed.
    """
    vault, runs = vault_root(), list(_runs(options))
    if not options.dry_run:
        clear_killed_work(*(run.path for run in runs), vault=vault, reporter=reporter)
    rows: list[Row] = []
    purged = 0
    for run in runs:
        found = _purge_run(run, options.identity, vault, reporter, dry_run=options.dry_run)
        purged += bool(found)
        rows += found
    rows += _purge_arrow_caches(options.identity, dry_run=options.dry_run)
    rows += _purge_cache(options, vault, reporter)
    if not rows:
        raise _unknown(options)
    rows += [Row(place, "kept", reason) for place, reason in KEPT.items()]
    return {"dry_run": options.dry_run, "runs": purged, "rows": [dataclasses.asdict(row) for row in rows]}


def _unknown(options: PurgeOptions) -> UsageError:
    where = ", ".join(options.run) or f"{RUNS}/"
    return UsageError(f"Neither the runs ({where}) nor the caches contain the identity '{options.identity}', so nothing was changed.")


# Runs


def _runs(options: PurgeOptions) -> Iterator[Run]:
    """Yield the named runs, or all below the default folder. One that cannot be read is an error: it may name the person."""
    if options.run:
        yield from map(Run.open, dict.fromkeys(options.run))
        return
    restore_replaced(RUNS)
    for file in sorted(RUNS.glob(f"*/{RECORD}")):
        if not file.parent.name.startswith("."):  # a temporary folder of a killed process, which is cleared
            yield Run.open(file.parent)


def _purge_run(run: Run, identity: str, vault: Path, reporter: Reporter, *, dry_run: bool) -> list[Row]:
    """Remove a person from a run and return what was done; nothing if the run does not name the person."""
    with contextlib.ExitStack() as held:
        if not dry_run:
            held.enter_context(lock_output(run.path, discard_with_secrets(vault, run.path)))
            held.enter_context(request_lock([run.path]))
            run = Run.open(run.path)
            _complete_record(run)
        split = load_split(run.path / SPLIT) if (run.path / SPLIT).exists() else None
        entries = find_entries([run.path], [identity], vault, reporter)
        named = split is not None and _names(split, identity)
        if not named and not entries:
            return []
        made = sorted((file, reason) for pattern, reason in REMOVED.items() for file in run.path.glob(pattern))
        states = [state for state in run.path.rglob(f".*{UNFINISHED}") if any(state.glob(STATE_FILES))]
        rows = [Row(f"{run.path}/methods", "destroyed", "data prepared for the person, with its secrets")] if entries else []
        rows += [Row(str(state), "removed", "state of an interrupted preparation, not encrypted; prepare again") for state in states]
        rows += [Row(str(file), "removed", reason) for file, reason in made]
        rows += [Row(str(run.path / SPLIT), "rewritten", "the person is in no set; the other sets stay as they are")] if named else []
        if (run.path / METRICS).exists():
            rows.append(Row(str(run.path / METRICS), "kept", "means over sets, without names; `oneshui evaluate` measures them again"))
        if identity in (run.record.dataset.get("labels") or ()):
            rows.append(Row(str(run.path), "kept", "the model's labels are names of people, this one included; train again without"))
        if dry_run:
            return rows
        _destroy(entries, vault)
        remove_resume_states([run.path], SILENT)
        for file, _ in made:
            remove(file)
        sync_folder(run.path)
        if split is not None and named:
            # The record names the split's hash. Without one, the split is not checked, and an interrupted call can be completed.
            run.record.split, run.record.report[PURGED] = None, True
            write_record(run.path, run.record)
            _without(split, identity).save(run.path / SPLIT)
            _complete_record(run)
        return rows


def _complete_record(run: Run) -> None:
    """Write the hash of a split that was purged to its record, if it is missing."""
    if run.record.split is None and run.record.report.get(PURGED) and (run.path / SPLIT).exists():
        run.record.split = hash_file(run.path / SPLIT)
        write_record(run.path, run.record)


def _destroy(identities: Sequence[Entries], vault: Path) -> None:
    for entries in identities:
        for artefact, entry in entries.items():
            Secrets(vault, artefact).destroy(entry)


def _names(split: Split, identity: str) -> bool:
    people = (*split.people.values(), split.forget, split.support, split.reserved)
    return any(identity in members for members in people)


def _without(split: Split, identity: str) -> Split:
    """Return a split in which a person is in no set."""

    def others(names: Sequence[str]) -> list[str]:
        return [name for name in names if name != identity]

    return dataclasses.replace(
        split,
        people={name: others(members) for name, members in split.people.items()},
        forget=others(split.forget),
        support={name: key for name, key in split.support.items() if name != identity},
        reserved={name: key for name, key in split.reserved.items() if name != identity},
    )


# Caches


def _purge_arrow_caches(identity: str, *, dry_run: bool) -> list[Row]:
    """Remove the caches of data sets that contain a person: the Arrow data, and the pixels and other files next to it."""
    import datasets

    root = Path(datasets.config.HF_DATASETS_CACHE)
    own = {Plugins(DATASETS).load(name).__module__.rpartition(".")[2] for name in Plugins(DATASETS).names}
    rows = []
    if not dry_run:
        for left in root.rglob(f"{HIDDEN}*"):  # by a call that was killed
            remove(left)
    for folder in sorted({file.parent for file in root.rglob("*.arrow")}):
        is_own = folder.relative_to(root).parts[0] in own
        is_used = any(folder.glob("oneshui-*"))  # read by `datasets` itself, from a table or the Hub
        if (is_own or is_used) and _has_identity(folder, identity, with_numbers=is_used):
            rows.append(Row(str(folder), "removed", "photos and pixels of a data set, made again from it when it is read"))
            if not dry_run:
                hidden = folder.with_name(f"{HIDDEN}{secrets.token_hex(4)}")
                folder.rename(hidden)  # at once: a part of it would not be recognised
                remove(hidden)
    return rows


def _has_identity(folder: Path, identity: str, *, with_numbers: bool) -> bool:
    """Return whether a column of the Arrow data in a folder has an identity as its value, or the list of excluded photos names it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for file in sorted(folder.glob("*.arrow")):
        with contextlib.suppress(pa.ArrowInvalid), pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            is_text = pa.types.is_string, pa.types.is_large_string, *((pa.types.is_integer,) if with_numbers else ())
            chosen = [number for number, field in enumerate(stream.schema) if any(check(field.type) for check in is_text)]
            for batch in stream:
                if any(pc.any(pc.equal(batch.column(number).cast(pa.string()), identity)).as_py() for number in chosen):
                    return True
    return _mentions(_field(folder / "dataset_info.json", "description"), identity)


def _purge_cache(options: PurgeOptions, vault: Path, reporter: Reporter) -> list[Row]:
    """Remove the entries of the cache of models that name a person, or have data prepared for the person."""
    root, identity = cache_root(options.cache_dir), options.identity

    def contains(paths: Sequence[Path]) -> bool:
        folders = [path for path in paths if path.is_dir() and not path.name.endswith(VAULT)]
        splits = [file.read_bytes() for folder in folders for file in folder.rglob(SPLIT)]
        splits += [_field(path, "made_from", "split") for path in paths if path.is_file()]
        vaults = [path for path in paths if path.name.endswith(VAULT)] or [vault]
        return any(_mentions(text, identity) for text in splits) or any(
            find_entries(folders, [identity], place, reporter) for place in vaults
        )

    cleared = Cache(root, discard_with_secrets(vault)).clear(dry_run=options.dry_run, selects=contains)
    if cleared.in_use:
        raise OneshuiError(
            f"{cleared.in_use} entries of {root} that contain the person are in use; run the same command when that has ended."
        )
    return (
        [Row(str(root), "removed", f"{cleared.entries} cached models and preparations; made again when needed")] if cleared.entries else []
    )


def _field(file: Path, *names: str) -> bytes:
    """Return a text in a JSON file, by the names of the fields that lead to it; empty without one."""
    value: Any = None
    with contextlib.suppress(OneshuiError):
        value = read_object(file)
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value.encode() if isinstance(value, str) else b""


def _mentions(text: bytes, identity: str) -> bool:
    """Return whether a JSON text has an identity as a text of its own, or as a folder or file in the name of a photo."""
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):  # a hash, or a description in words
        return False
    return any(identity == found or identity in found.split("/") for found in iter_strings(value))
