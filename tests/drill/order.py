"""The order in which a request writes, syncs and destroys: what a power cut would leave at any moment, read from the log of operations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .injection import Operation


def order_problem(operations: Sequence[Operation], root: Path, output: str, files: Sequence[str]) -> str:
    """Return what a power cut could destroy before the new model is on the disk, or leave after it; empty if nothing.

    Args:
        operations: The operations of a request that ended right.
        root: The folder of the case.
        output: The folder of the new run, below the root.
        files: The files of the new run that the request does not write again.
    """
    log = [(operation.kind, operation.path.removeprefix(str(root)).lstrip("/")) for operation in operations]
    if ("rename", output) not in log:
        return f"{output} is not created by a rename"
    renamed = len(log) - 1 - log[::-1].index(("rename", output))
    keys = [
        number
        for number, (kind, path) in enumerate(log)
        if path.startswith("vault/") and path.endswith(".key") and kind in ("write", "unlink")
    ]
    if not keys:
        return "no secret is destroyed"
    if min(keys) < renamed:
        return "a secret is destroyed before the new model has its name"
    partial = rf"\.{re.escape(output)}\.[0-9a-f]+\.partial"
    for name in (*files, ""):
        pattern = re.compile(partial + re.escape(f"/{name}" if name else ""))
        if not any(kind == "sync" and pattern.fullmatch(path) for kind, path in log[:renamed]):
            return f"{name or 'the folder'} of the new model is not synced before its rename"
    if ("sync", "") not in log[renamed : min(keys)]:
        return "the name of the new model is not synced before a secret is destroyed"
    for key in {log[number][1] for number in keys}:
        kinds = [kind for kind, path in log if path == key]
        if kinds != ["write", "sync", "unlink"]:
            return f"a secret is not overwritten, synced and deleted, but {', '.join(kinds)}"
        if ("sync", key.rpartition("/")[0]) not in log[log.index(("unlink", key)) :]:
            return "the deletion of a secret is not synced"
    return ""
