"""Seeded changes of one file: bits, bytes, lengths, types and values, links and neighbours."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[Path, random.Random], str]

LEAVES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 10**30, 0.5, float("nan"), float("inf"), "", "x", "../../outside/secret",
    "\x1b[2J\n\u202eError: x", "a" * 100_000,
    [], [[]], {}, {"a": {}}, ["x"] * 1000, "owner/elsewhere", "__import__('os').system('touch canary')",
)  # fmt: skip


def flip_bits(file: Path, draws: random.Random) -> str:
    data = bytearray(file.read_bytes())
    places = [draws.randrange(len(data)) for _ in range(draws.choice([1, 1, 8]))] if data else []
    for place in places:
        data[place] ^= 1 << draws.randrange(8)
    file.write_bytes(data)
    return f"bits flipped at {places[:3]}"


def flip_late_bit(file: Path, draws: random.Random) -> str:
    data = bytearray(file.read_bytes())
    place = draws.randrange(len(data) // 2, len(data)) if len(data) > 1 else 0
    data[place:] = bytes([data[place] ^ 0x80]) + data[place + 1 :]
    file.write_bytes(data)
    return f"sign flipped at {place}"


def truncate(file: Path, draws: random.Random) -> str:
    size = draws.choice([0, 1, 7, 8, 9, draws.randrange(file.stat().st_size + 1)])
    os.truncate(file, min(size, file.stat().st_size))
    return f"truncated to {size} bytes"


def append(file: Path, draws: random.Random) -> str:
    with file.open("ab") as stream:
        stream.write(draws.choice([b"\0", b"x" * 1000, b"{}"]))
    return "bytes appended"


def random_bytes(file: Path, draws: random.Random) -> str:
    file.write_bytes(draws.randbytes(draws.choice([1, 100, 10_000])))
    return "random bytes"


def length_of_header(file: Path, draws: random.Random) -> str:
    size = draws.choice([0, 1, 2**20, 2**31, 2**62, 2**64 - 1])
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    return f"a header of {size} bytes"


def no_tensors(file: Path, draws: random.Random) -> str:
    file.write_bytes(struct.pack("<Q", 2) + b"{}")
    return "no tensors"


def header(file: Path, draws: random.Random) -> str:
    """Change the header of a safetensors file: a tensor renamed, removed, of another shape or type."""
    data = file.read_bytes()
    try:
        size = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + size])
        name = draws.choice(sorted(key for key in content if key != "__metadata__"))
    except (ValueError, IndexError, struct.error):
        return random_bytes(file, draws)
    change = draws.choice(["rename", "remove", "shape", "type", "metadata"])
    if change == "rename":
        content[draws.choice(["x", "../x", "\x1b[31m\n", ""])] = content.pop(name)
    elif change == "remove":
        del content[name]
    elif change == "shape":
        content[name]["shape"] = draws.choice([[1, *content[name]["shape"]], content[name]["shape"][::-1], [], [-1], [2**40, 2**40]])
    elif change == "type":
        content[name]["dtype"] = draws.choice(["F16", "I64", "BOOL", "U8", "x"])
    else:
        content["__metadata__"] = {"format": draws.choice(["tf", "\x1b[2J", "pt" * 50_000])}
    changed = json.dumps(content).encode()
    file.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + size :])
    return f"header: {change}"


def leaf(file: Path, draws: random.Random) -> str:
    """Change one value of a JSON file at a random depth."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return random_bytes(file, draws)
    place, path = content, []
    while isinstance(place, dict | list) and place:
        key = draws.choice(sorted(place)) if isinstance(place, dict) else draws.randrange(len(place))
        path.append(key)
        if not (isinstance(place[key], dict | list) and place[key]) or draws.random() < 0.25:
            break
        place = place[key]
    value = draws.choice([other for other in LEAVES if other != (place[path[-1]] if path else content)])
    if not path:
        content = value
    elif draws.random() < 0.2:
        del place[path[-1]]
        value = "removed"
    else:
        place[path[-1]] = value
    file.write_text(json.dumps(content))
    return f"{'.'.join(map(str, path))}: {str(value)[:40]!a}"


def top(file: Path, draws: random.Random) -> str:
    """Replace a JSON file by another value."""
    text = draws.choice(
        ["{}", "[]", "null", "1", '"x"', "[" * 100_000, '{"a":' * 100_000, "NaN", '{"format": 1}', "\ufeff{}", "{", "[[[[1]]]]"]
    )
    file.write_text(text)
    return f"replaced by {text[:20]}"


def remove(file: Path, draws: random.Random) -> str:
    file.unlink()
    return "removed"


def folder_instead(file: Path, draws: random.Random) -> str:
    file.unlink()
    file.mkdir()
    return "a folder"


def link_out(file: Path, draws: random.Random) -> str:
    target = draws.choice(["../outside/secret", "/etc/hostname", "nowhere", file.name, "../outside"])
    depth = len(file.relative_to(_root(file)).parts) - 2
    file.unlink()
    file.symlink_to("../" * depth + target if target.startswith("../") else target)
    return f"a link to {target}"


def swap(file: Path, draws: random.Random) -> str:
    others = sorted(
        other for other in _root(file).rglob(f"*{file.suffix}") if other.is_file() and other != file and "outside" not in other.parts
    )
    other = draws.choice(others)
    shutil.copyfile(other, file)
    return f"replaced by {other.relative_to(_root(file))}"


def _root(file: Path) -> Path:
    """Return the case's folder: the nearest one with `outside` in it."""
    return next(parent for parent in file.parents if (parent / "outside").is_dir())


BINARY: tuple[Mutation, ...] = (
    flip_bits,
    flip_late_bit,
    flip_late_bit,
    truncate,
    append,
    random_bytes,
    length_of_header,
    no_tensors,
    header,
    header,
    swap,
)
JSON: tuple[Mutation, ...] = (leaf, leaf, leaf, leaf, leaf, leaf, top, truncate, flip_bits, random_bytes, swap)
ANY: tuple[Mutation, ...] = (remove, folder_instead, link_out)
