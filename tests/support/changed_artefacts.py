"""Changes of an artefact's files: as whoever has the secrets can make them, and as earlier versions wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors.torch import load_file, save_file

from oneshui_hf.methods.artefact import read_header, write_header
from oneshui_hf.methods.identity_store import IdentityStore
from oneshui_hf.vault import Secrets, vault_root


def change_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `artefact.json`, with all hashes and the seal. The secrets are in the user's vault."""
    before = read_header(folder)
    after = json.loads(json.dumps(before))
    change(after)
    for name in ("content", "tensors"):
        after.pop(name)
    content = write_header(folder, after)
    if (folder / "people.json").exists():
        store = IdentityStore(folder, vault_root(), before)
        (folder / "people.json").write_text(json.dumps(store.index_for(content)))


def rewrite_as_format_1(folder: Path, vault: Path) -> None:
    """Rewrite an artefact's folder in the first format: without hashes and seal, and with blobs that are not bound to the weights."""
    header = json.loads((folder / "artefact.json").read_text())
    content = json.loads((folder / "people.json").read_text())
    secrets, blobs = Secrets(vault, content["artefact"]), {}
    for name, blob in load_file(folder / "people.safetensors").items():
        entry, tensor = name[:32], name[32:]
        plain = secrets.decrypt(entry, tensor, blob.numpy().tobytes(), header["weights"])
        key, nonce = (secrets.folder / f"{entry}.key").read_bytes(), b"0" * 12
        encrypted = nonce + AESGCM(key).encrypt(nonce, plain, f"{content['artefact']}/{entry}/{tensor}".encode())
        blobs[name] = torch.frombuffer(bytearray(encrypted), dtype=torch.uint8)
    save_file(blobs, folder / "people.safetensors")
    (folder / "people.json").write_text(json.dumps({"format": 1, "artefact": content["artefact"], "index": content["index"]}))
    kept = {name: value for name, value in header.items() if name not in ("content", "tensors")}
    (folder / "artefact.json").write_text(json.dumps(kept))
