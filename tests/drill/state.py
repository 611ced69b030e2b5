"""What a folder contains, in a form that is equal whenever the same commands ended right: for comparison with an uninterrupted run.

Weights, tables and tensors are compared byte by byte. Encrypted files differ by design (ids, secrets and nonces are random), so what they
decrypt to is compared. Measured seconds and megabytes are left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oneshui_hf.errors import OneshuiError
from oneshui_hf.files import LEFTOVER
from oneshui_hf.methods.artefact import Artefact
from oneshui_hf.methods.identity_store import BLOBS, INDEX, read_index
from oneshui_hf.runs import RECORD, Run, read_object
from oneshui_hf.vault import Secrets

MEASURED = re.compile(r"seconds.*|peak_mb|(prepare|apply)_(s|mb)|kept_mb")
CHECKSUM = "content"  # of values that include measured ones
ARTEFACT_ID = re.compile(r"[0-9a-f]{32}")
NOT_COMPARED = ("costs.csv", ".locks", "datasets")  # measured; lock files that a cache keeps; files of another library

State = dict[str, str]


def state_of(root: Path) -> State:
    """Return every file below a folder with a digest of what it means, and the number of secrets of each artefact."""
    found: State = {}
    for file in sorted(path for path in root.rglob("*") if path.is_file() or path.is_symlink()):
        name = file.relative_to(root).as_posix()
        if any(part in NOT_COMPARED for part in file.parts) or ARTEFACT_ID.fullmatch(file.parent.name):
            continue
        found[name] = _content(file, root)
    artefacts = {identifier: folder.relative_to(root).as_posix() for folder, identifier in _artefacts(root)}
    for secrets in _secret_folders(root):
        owner = artefacts.get(secrets.name)
        keys = sum(1 for file in secrets.iterdir() if not LEFTOVER.fullmatch(file.name))
        found[f"secrets of {owner}" if owner else f"ORPHAN SECRETS {secrets.name[:8]}"] = f"{keys} files"
    return found


def differences(found: State, expected: State) -> list[str]:
    """Return what is wrong, in words, the gravest first."""
    wrong = [f"wrong content: {name}" for name in found if name in expected and found[name] != expected[name]]
    missing = [f"missing: {name}" for name in expected if name not in found]
    left = [f"left behind: {name}" for name in found if name not in expected]
    return wrong + missing + left


Listing = dict[str, tuple[int, int]]


def listing(root: Path) -> Listing:
    """Return size and time of every file: cheap, and independent of what it contains."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            status = file.lstat()
            found[file.relative_to(root).as_posix()] = status.st_size, status.st_mtime_ns
    return found


def changes(before: Listing, after: Listing) -> list[str]:
    """Return the files that were written, removed or created."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def leftovers(root: Path) -> list[str]:
    """Return scratch files and folders of the product, and orphan secrets: nothing of the kind stays after the next command."""
    inside = [path for path in root.rglob("*") if LEFTOVER.fullmatch(path.name)]
    temporary = list((root / "tmp").iterdir()) if (root / "tmp").is_dir() else []
    artefacts = {identifier for _, identifier in _artefacts(root)}
    orphans = [folder for folder in _secret_folders(root) if folder.name not in artefacts]
    return sorted({path.relative_to(root).as_posix() for path in (*inside, *temporary, *orphans)})


def _content(file: Path, root: Path) -> str:
    if file.is_symlink():
        return f"link to {file.readlink()}"
    try:
        if file.name == INDEX:
            return str(len(read_index(file.parent)["index"]))
        if file.name == BLOBS:
            return _digest(_people(file.parent, root))
        if file.name == "artefact.json":
            return _digest(_artefact(file, root))
        if file.suffix == ".json":
            return _digest(_without_measured(json.loads(file.read_text())))
    except (OneshuiError, ValueError, RecursionError) as error:
        return f"unreadable: {error}"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _without_measured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_measured(item) for key, item in value.items() if not MEASURED.fullmatch(key) and key != CHECKSUM}
    return [_without_measured(item) for item in value] if isinstance(value, list) else value


def _artefact(file: Path, root: Path) -> Any:
    """Return what a method reads from an artefact, through the product's own reader."""
    loaded = _load(file.parent, root)
    tensors = {name: _digest_of(tensor) for name, tensor in sorted(loaded.tensors.items())}
    return [tensors, loaded.values, loaded.options, _without_measured(loaded.report)]


def _people(folder: Path, root: Path) -> dict[str, dict[str, str]]:
    """Return digests of the decrypted tensors of each identity whose secret exists."""
    people = _load(folder, root).people if _vault_of(folder, root) else {}
    return {person: {name: _digest_of(people[person][name]) for name in sorted(people[person])} for person in people}


def _load(folder: Path, root: Path) -> Artefact:
    header = read_object(folder / "artefact.json")
    return Artefact.load(folder, str(header.get("method")), str(header.get("weights")), vault=_vault_of(folder, root) or root / "vault")


def _digest_of(tensor: Any) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def readable_copies(root: Path, person: str) -> list[str]:
    """Return the folders below `root`, hidden ones too, from which the data of a person can still be decrypted."""
    return [folder.relative_to(root).as_posix() for folder, _ in _secrets_of(root, person)]


def secrets_of(root: Path, person: str) -> set[bytes]:
    """Return the secrets with which the data of a person can be decrypted."""
    return {secret for _, secret in _secrets_of(root, person)}


def _secrets_of(root: Path, person: str) -> Iterator[tuple[Path, bytes]]:
    for folder, identifier in _artefacts(root):
        if (vault := _vault_of(folder, root)) is None:
            continue
        with contextlib.suppress(OneshuiError):  # the artefact's own secret is destroyed: nobody can find the entry
            entry = read_index(folder)["index"].get(Secrets(vault, identifier).fingerprint(person))
            if entry and (file := vault / identifier / f"{entry}.key").exists():
                yield folder, file.read_bytes()


def stored_secrets(root: Path) -> set[bytes]:
    """Return the content of all files in folders of secrets, whatever their names."""
    return {file.read_bytes() for folder in _secret_folders(root) for file in folder.rglob("*") if file.is_file()}


def _vault_of(folder: Path, root: Path) -> Path | None:
    """Return the vault below `root` that contains the secrets of an artefact."""
    try:
        identifier = read_index(folder)["artefact"]
    except OneshuiError:
        return None
    return next((secrets.parent for secrets in _secret_folders(root) if secrets.name == identifier), None)


def _artefacts(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders with per-identity data below `root`, hidden ones too, and their ids."""
    for index in sorted(root.rglob(INDEX)):
        try:
            yield index.parent, read_index(index.parent)["artefact"]
        except OneshuiError:
            continue


def _secret_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_dir() and ARTEFACT_ID.search(path.name) and _is_vault(path.parent))


def _is_vault(folder: Path) -> bool:
    return folder.name == "vault" or folder.name.endswith(".vault")


def is_complete(run: Path) -> bool:
    """Whether a folder is a finished run with the weights of its record."""
    try:
        return (run / RECORD).is_file() and bool(Run.open(run).require_complete())
    except OneshuiError:
        return False
