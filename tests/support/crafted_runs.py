"""Damaged copies of a run, as somebody could publish them or a disk could leave them, from a seeded generator.

    for crafted in crafted_runs(seed=0):
        shutil.copytree(valid, folder)
        crafted.corrupt(folder)          # writes into the copy

The run may have `metrics.json`, `curves.json`, `predictions/`, an artefact below `methods/` and a `checkpoint-1/`; damage of a file that it
lacks creates the file. Hashes in the record are corrected after the damage where a hash would otherwise hide it, as whoever
publishes a run can do, unless the damage is `unsealed`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oneshui_hf.runs import hash_file, hash_settings, hash_weights, with_checksum

Corruption = Callable[[Path], None]

CONFIG, PREPROCESSOR, RECORD = "config.json", "preprocessor_config.json", "oneshui.json"
METRICS, CURVES, SPLIT = "metrics.json", "curves.json", "split.json"
WEIGHTS = "model.safetensors"
SETTINGS = ("config", "preprocessor")  # the kinds of JSON files whose hash the record has
UNHASHED = (*SETTINGS, "record")  # those without a hash, once the record has the new one
LONG = "x" * 100_000
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, 10**9, -(10**9), 2**62, 1e30, "", "x", "0", LONG, "a\nb\x1b[31mred", "\u202eabc"),
    *("../../x", "/etc/passwd", "attacker/kernel", [], [[]], [0], [-1, 1], {}, {"x": 1}, [None] * 50, {"0": {"1": []}}),
)


@dataclasses.dataclass(frozen=True)
class CraftedRun:
    """One damage of a run.

    Attributes:
        name: Describes it; unique.
        area: The kind of file: config, preprocessor, record, weights, metrics, split, predictions, artefact or checkpoint.
        corrupt: Writes into a copy of a valid run.
        harmless: Whether the run still means the same, so that commands may go on as before.
    """

    name: str
    area: str
    corrupt: Corruption
    harmless: bool = False


def crafted_runs(seed: int = 0, drawn: int = 60) -> list[CraftedRun]:
    """Return all fixed damages, and `drawn` random ones, in which values of JSON files are replaced."""
    fixed = [*_texts(), *_config(), *_preprocessor(), *_record(), *_weights(), *_measured(), *_tensor_files()]
    found = [*fixed, *_drawn(seed, drawn)]
    assert len({crafted.name for crafted in found}) == len(found)
    return found


# JSON files


def read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else {}


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def reseal(run: Path) -> None:
    """Correct the hashes in a run's record and the checksums of its metrics, as far as these files are still objects."""
    for name in (METRICS, CURVES):
        _change_object(run / name, lambda value: with_checksum({key: item for key, item in value.items() if key != "content"}))

    def corrected(record: dict[str, Any]) -> dict[str, Any]:
        if any(run.glob("*.safetensors")) and isinstance(record.get("weights"), str):
            record["weights"] = hash_weights(run)
        if (run / SPLIT).is_file() and isinstance(record.get("split"), str):
            record["split"] = hash_file(run / SPLIT)
        if isinstance(record.get("settings"), dict):
            record["settings"] = hash_settings(run)
        return record

    _change_object(run / RECORD, corrected)


def _change_object(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    try:
        value = json.loads(file.read_bytes()) if file.is_file() else None
        if isinstance(value, dict):
            file.write_text(json.dumps(change(value), allow_nan=True))
    except (ValueError, RecursionError, OSError):
        return


def _sealed(corrupt: Corruption) -> Corruption:
    def corrupt_and_reseal(run: Path) -> None:
        corrupt(run)
        reseal(run)

    return corrupt_and_reseal


def _place(run: Path, name: str) -> Path:
    """Return a file of a run; the artefact's is that of its first method."""
    if not name.startswith("artefact"):
        return run / name
    folders = sorted(file.parent for file in run.glob("methods/*/artefact.json"))
    return (folders[0] if folders else run / "methods" / "lfssd") / name


def _texts() -> Iterator[CraftedRun]:
    """Yield files whose content is no JSON object, or no regular file."""
    contents = {
        "empty": b"",
        "cut": b'{"a": 1, "b"',
        "a list": b"[]",
        "null": b"null",
        "a number": b"5",
        "a text": b'"x"',
        "an empty object": b"{}",
        "no UTF-8": b'{"a": "\xff\xfe"}',
        "a byte order mark": b"\xef\xbb\xbf{}",
        "nested lists": b"[" * 200_000,
        "nested objects": b'{"a":' * 900 + b"1" + b"}" * 900,
        "an integer of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        "binary": bytes(range(256)) * 20,
    }
    added = {
        "NaN": b'"later": NaN',
        "infinity": b'"later": [1e999, -1e999]',
        "NUL": b'"later": "a\\u0000b"',
        "half a surrogate pair": b'"later": "a\\ud800b"',
        "an integer of 4000 digits": b'"later": ' + b"9" * 4000,
        "100 levels": b'"later": ' + b"[" * 100 + b"]" * 100,
    }
    areas = {CONFIG: "config", PREPROCESSOR: "preprocessor", RECORD: "record", METRICS: "metrics", CURVES: "metrics", SPLIT: "split"}
    areas |= {"artefact.json": "artefact", "checkpoint-1/progress.json": "checkpoint"}
    for name, area in areas.items():
        seal = _sealed if area in SETTINGS else lambda corrupt: corrupt
        for what, content in contents.items():
            yield CraftedRun(f"{name} is {what}", area, seal(_with_content(name, content)))
        for what, content in added.items():
            yield CraftedRun(f"{name} has {what}", area, seal(_with_field(name, content)))
        twice = _with_field(name, b'"later": 1, "later": 2')
        yield CraftedRun(f"{name} has a field twice", area, seal(twice), harmless=area in UNHASHED)
        for what, make in PLACES.items():
            yield CraftedRun(f"{name} is {what}", area, seal(_with_place(name, make)))


def _with_content(name: str, content: bytes) -> Corruption:
    def corrupt(run: Path) -> None:
        file = _place(run, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    return corrupt


def _with_field(name: str, field: bytes) -> Corruption:
    def corrupt(run: Path) -> None:
        file = _place(run, name)
        text = json.dumps(read(file)).encode()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{" + field + (b"" if text == b"{}" else b", ") + text[1:])

    return corrupt


def _with_place(name: str, make: Callable[[Path], None]) -> Corruption:
    def corrupt(run: Path) -> None:
        file = _place(run, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        make(file)

    return corrupt


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda file: None,
    "a folder": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to nothing": lambda file: file.symlink_to("absent"),
    "a link to a device": lambda file: file.symlink_to("/dev/zero"),
}


def _setting(name: str, *path: str, value: Any) -> Corruption:
    """Return a damage that sets one value of a JSON file; `...` removes it."""

    def corrupt(run: Path) -> None:
        file = _place(run, name)
        whole = read(file)
        place = whole
        for key in path[:-1]:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        if value is ...:
            place.pop(path[-1], None)
        else:
            place[path[-1]] = value
        write(file, whole)

    return _sealed(corrupt)


def _settings(area: str, name: str, values: dict[str, tuple[Any, ...]]) -> Iterator[CraftedRun]:
    for key, options in values.items():
        for value in options:
            text = "absent" if value is ... else json.dumps(value)[:40]
            yield CraftedRun(f"{name}: {key} is {text}", area, _setting(name, *key.split("."), value=value))


def _config() -> Iterator[CraftedRun]:
    yield CraftedRun(f"{CONFIG} has a new field, and the record is unchanged", "config", _with_field(CONFIG, b'"new": 1'))
    nested: Any = 1
    for _ in range(60):
        nested = {"vision_config": nested}
    whole: tuple[Any, ...] = (0, -1, 10**9, 1.5, "x", None, [], {}, True)
    yield from _settings(
        "config",
        CONFIG,
        {
            "model_type": (
                ...,
                5,
                "",
                "bert",
                "no_such_model",
                "../vit",
                LONG,
                None,
                ["vit"],
                "oneshui_backbone",
                "oneshui_sharded",
                "swin",
            ),
            "num_attention_heads": (*whole, 7, 5000),
            "num_hidden_layers": (*whole, 100_000, 5),
            "hidden_size": (*whole, 63, 2**17),
            "intermediate_size": (*whole, 2**17),
            "patch_size": (*whole, 7, [8, 8], [8, 0], 64),
            "image_size": (*whole, 4096, 4097, 33, [32, 32], [32, -32]),
            "num_channels": (*whole, 1, 64),
            "hidden_act": ("no such function", 5, None, "__import__('os')"),
            "hidden_dropout_prob": (-1, 2, "x"),
            "layer_norm_eps": ("x", None, 1e30),
            "initializer_range": ("x", -1),
            "problem_type": (5, "regression", "x"),
            "id2label": (..., None, [], {}, {"0": "a"}, {"x": "a"}, {str(i): i for i in range(12)}, {str(i): LONG for i in range(12)}),
            "label2id": ({"a": "x"}, []),
            "num_labels": (0, -1, 10**9, 3, "x"),
            "architectures": (5, "ViT", [5], ["os.system"], ["BertForMaskedLM"]),
            "dtype": (5, "no_such_type", "load", "float16", "hub"),
            "auto_map": ({"AutoConfig": "canary.Canary"}, {"AutoModelForImageClassification": "attacker/x--canary.Canary"}, "x"),
            "custom_pipelines": ({"image-classification": {"impl": "canary.Canary", "pt": [], "type": "image"}},),
            "attn_implementation": ("attacker/kernel", "flash_attention_2", {"": "attacker/kernel"}, 5),
            "_attn_implementation": ("attacker/kernel",),
            "_attn_implementation_internal": ("attacker/kernel",),
            "experts_implementation": ("attacker/kernel",),
            "quantization_config": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}, {}, "x"),
            "use_kernels": (True,),
            "kernel_config": ({"x": "attacker/kernel"},),
            "fusion_config": ({"x": 1},),
            "transformers_weights": ("../other.safetensors", "adapter_model.bin"),
            "configuration_files": (["config.4.0.0.json"],),
            "vision_config": (nested, {"auto_map": {"AutoConfig": "canary.Canary"}}),
            "backbone": ("attacker/backbone", {"model_type": "vit", "num_hidden_layers": 10**6}),
            "use_pretrained_backbone": (True,),
            "per_layer_config": ({"0": {"hidden_size": 3}}, [1]),
            "output_hidden_states": ("x",),
            "chunk_size_feed_forward": (-1, 3),
            "qkv_bias": ("x",),
        },
    )
    for architecture in ("hf-hub:attacker/model", "local-dir:/tmp", "resnet18", 5):
        config = {"model_type": "timm_wrapper", "architecture": architecture, "num_classes": 2, "label_names": ["a", "b"]}
        yield CraftedRun(f"{CONFIG}: timm builds {architecture}", "config", _with_content(CONFIG, json.dumps(config).encode()))
    config = {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "/tmp/x.pt"}}
    yield CraftedRun(f"{CONFIG}: timm reads a pickle", "config", _with_content(CONFIG, json.dumps(config).encode()))


def _preprocessor() -> Iterator[CraftedRun]:
    triple = ([], [0.5], [0.5] * 4, [0.5, "x", 0.5], [0.5, None, 0.5], "x", 0.5, None, [1e30] * 3, [[0.5]] * 3, [True] * 3)
    yield from _settings(
        "preprocessor",
        PREPROCESSOR,
        {
            "size": (..., None, 0, -1, 32, "x", 10**9, [], {}, {"height": 32}, {"shortest_edge": 32}),
            "size.height": (0, -1, "x", 10**9, 31, 64, 1.5, None, True, [32]),
            "size.width": (0, 31),
            "image_mean": (..., *triple),
            "image_std": (..., *triple, [0.0, 0.5, 0.5], [-1.0] * 3),
            "rescale_factor": (0, -1, "x", [], 1e30),
            "do_flip_channel_order": ("x", 5, []),
            "auto_map": ({"AutoImageProcessor": "canary.Canary"},),
        },
    )


def _record() -> Iterator[CraftedRun]:
    odd: tuple[Any, ...] = (None, 5, "x", [], [1], {"x": {}}, True)
    yield from _settings(
        "record",
        RECORD,
        {
            "kind": (..., None, 5, "x", [], {}, "oracle", "unlearned"),
            "seed": (..., None, -1, 2**63, "x", 1.5, [], True),
            "options": (..., *odd),
            "dataset": (..., *odd),
            "state": (None, 5, "x", [], "training"),
            "parent": (5, "x", [], {"run": 5}, {"run": "a\u2028b", "weights": []}, {"run": LONG}, {"run": "../run"}),
            "weights": (None, 5, "x", [], LONG),
            "split": (5, "x", [], LONG),
            "report": (*odd, {}),
            "versions": (*odd, {"torch": 5}),
            "format": (..., None, "1", 2, [], True),
            "options.dataset": (..., None, 5, [], "", "no/such/place", LONG),
            "options.lr": ("x", [], -1, None, 1e30),
            "options.epochs": ("x", 0, None),
            "options.image_size": ("x", 0, 10**9),
            "options.no_such_option": (1, {"x": 1}),
            "options.model": (5, [], LONG),
            "dataset.name": (..., None, 5, [], LONG),
            "dataset.task": (..., None, 5, "x", [], "single_label"),
            "dataset.labels": (..., None, 5, "x", [], [5], ["a"], [None], [LONG]),
            "dataset.images": (..., None, "x", -1, [], 1.5),
            "dataset.identities": (None, "x", {}),
            "dataset.fingerprint": (..., None, 5, "x"),
            "report.split": (None, 5, [], {}, {"images": 5}, {"images": {"train": "x"}}, {"forget_identities": "x"}),
            "report.split.forget_identities": (..., None, -1, "x", 1.5, []),
            "report.history": (None, 5, [5], [{}], [{"epoch": "x"}], {"0": 1}, [{"epoch": 1, "train_loss": "x"}]),
            "report.best_epoch": (5000, -1, "x", 0, [], 1.5),
            "report.shards": (5, [5], [{}], [{"shard": "x"}], "x"),
            "report.method": (5, [], "../x", "no-such-method", LONG),
            "report.method_options": (5, [], {"x": {"y": 1}}),
            "report.photos": ("x", -1, []),
            "report.seconds": ("x", []),
            "report.reads": (5, "x", [5], ["../x"]),
            "report.destroyed": ("x", -1, []),
        },
    )


# Tensors


def tensor_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _on_tensors(change: Callable[[dict[str, Any]], dict[str, Any]], name: str = WEIGHTS) -> Corruption:
    def corrupt(run: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = _place(run, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.clone() for key, value in (load_file(file) if file.is_file() else {}).items()}
        changed = change(tensors)
        file.unlink(missing_ok=True)
        save_file(changed, file, {"format": "pt"})

    return _sealed(corrupt)


def _tensor_changes() -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    import torch

    def first(tensors: dict[str, Any]) -> str:
        return min((name for name, value in tensors.items() if value.is_floating_point()), default="x")

    def filled(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda tensors: tensors | {first(tensors): torch.full_like(tensors.get(first(tensors), torch.zeros(1)), value)}

    return {
        "no tensors": lambda tensors: {},
        "one tensor less": lambda tensors: {key: value for key, value in tensors.items() if key != first(tensors)},
        "one tensor more": lambda tensors: tensors | {"z.extra": torch.zeros(3)},
        "other names": lambda tensors: {f"other.{key}": value for key, value in tensors.items()},
        "another shape": lambda tensors: tensors | {first(tensors): torch.zeros(7, 3)},
        "more dimensions": lambda tensors: {key: value[None].clone() for key, value in tensors.items()},
        "NaN": filled(float("nan")),
        "infinity": filled(float("inf")),
        "values that overflow": lambda tensors: {key: 1e30 * value for key, value in tensors.items()},
        "integers": lambda tensors: {key: value.to(torch.int32) for key, value in tensors.items()},
        "truth values": lambda tensors: {key: value.bool() for key, value in tensors.items()},
        "a tensor of no elements": lambda tensors: tensors | {first(tensors): torch.zeros(0, 3)},
    }


FILES: dict[str, bytes] = {
    "empty": b"",
    "three bytes": b"\x01\0\0",
    "only a length": struct.pack("<Q", 100),
    "an empty header": tensor_file({}),
    "a header that is a list": tensor_file([]),
    "a header that is no JSON": tensor_file(b"{" * 100),
    "a nested header": tensor_file(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a header of 2 to the 63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "terabytes": tensor_file({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, b"\0" * 64),
    "negative shapes": tensor_file({"a": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]}}, b"\0" * 64),
    "no offsets": tensor_file({"a": {"dtype": "F32", "shape": [4]}}, b"\0" * 16),
    "an unknown type": tensor_file({"a": {"dtype": "X" * 5000, "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16),
    "overlapping tensors": tensor_file({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}, b"\0" * 16),
    "a pickle": b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.",
}


def _long_header(name: str) -> Corruption:
    def corrupt(run: Path) -> None:
        _with_content(name, struct.pack("<Q", 90_000_000) + b"{")(run)
        os.truncate(_place(run, name), 90_000_100)

    return corrupt


def _cut(name: str, share: float) -> Corruption:
    def corrupt(run: Path) -> None:
        file = _place(run, name)
        data = file.read_bytes() if file.is_file() else b""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data[: int(share * len(data))])

    return _sealed(corrupt)


def _tensors_of(area: str, name: str) -> Iterator[CraftedRun]:
    for what, content in FILES.items():
        yield CraftedRun(f"{name} is {what}", area, _sealed(_with_content(name, content)))
    for what, change in _tensor_changes().items():
        yield CraftedRun(f"{name} has {what}", area, _on_tensors(change, name))
    yield CraftedRun(f"{name} has a header of 90 MB", area, _sealed(_long_header(name)))
    for share in (0.5, 0.999):
        yield CraftedRun(f"{name} is cut at {share:.1%}", area, _cut(name, share))
    for what, make in PLACES.items():
        yield CraftedRun(f"{name} is {what}", area, _with_place(name, make))


def _index(listed: Any, keep: bool = False) -> Corruption:
    """Return a damage that replaces the weights by an index of several files."""

    def corrupt(run: Path) -> None:
        if not keep:
            (run / WEIGHTS).rename(run / "model-00001-of-00001.safetensors")
        (run / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))

    return _sealed(corrupt)


def _weights() -> Iterator[CraftedRun]:
    yield from _tensors_of("weights", WEIGHTS)
    index = {
        "names a file elsewhere": {"a": "../other/model.safetensors"},
        "names an absolute path": {"a": "/etc/passwd"},
        "names a pickle": {"a": "pytorch_model.bin"},
        "names a missing file": {"a": "model-00002-of-00002.safetensors"},
        "is empty": {},
        "is a list": ["model.safetensors"],
        "has numbers": {"a": 5},
    }
    for what, listed in index.items():
        yield CraftedRun(f"the index of the weights {what}", "weights", _index(listed))
    yield CraftedRun("the index of the weights lists one file", "weights", _index({"a": "model-00001-of-00001.safetensors"}), harmless=True)
    yield CraftedRun("an index beside the weights", "weights", _index({"a": "../x"}, keep=True), harmless=True)

    def unsealed(run: Path) -> None:
        data = bytearray((run / WEIGHTS).read_bytes())
        data[-1] ^= 0x80
        (run / WEIGHTS).write_bytes(data)

    yield CraftedRun(f"{WEIGHTS}: one bit differs, and the record is unchanged", "weights", unsealed)

    def outside(run: Path) -> None:
        other = run.parent / f"{run.name}-outside.safetensors"
        (run / WEIGHTS).rename(other)
        (run / WEIGHTS).symlink_to(other)

    yield CraftedRun(f"{WEIGHTS} is a link to a file outside", "weights", outside)

    def adapter(run: Path) -> None:
        write(run / "adapter_config.json", {"base_model_name_or_path": "attacker/model", "peft_type": "LORA"})

    yield CraftedRun("an adapter of a foreign model", "weights", adapter)


def _tensor_files() -> Iterator[CraftedRun]:
    yield from _tensors_of("predictions", "predictions/forget.safetensors")
    yield from _tensors_of("artefact", "artefact.safetensors")
    yield from _tensors_of("checkpoint", "checkpoint-1/model.safetensors")
    for name in ("checkpoint-x", "checkpoint-", "checkpoint-99999999999999999999999"):
        yield CraftedRun(f"a folder {name}", "checkpoint", lambda run, name=name: (run / name).mkdir())  # type: ignore[misc]
    yield CraftedRun("a file checkpoint-3", "checkpoint", _with_content("checkpoint-3", b"x"))
    odd = (None, 5, "x", [], {"x": []})
    yield from _settings("checkpoint", "checkpoint-1/progress.json", dict.fromkeys(("epoch", "history", "best_epoch", "best_score"), odd))
    artefact = {
        "format": (..., None, 5, "x", []),
        "method": (..., None, 5, "../x", LONG),
        "weights": (..., None, 5, []),
        "options": (..., *odd),
        "values": (..., *odd),
        "report": (..., *odd, {"face_encoder": "attacker/encoder"}),
        "versions": odd,
    }
    yield from _settings("artefact", "artefact.json", artefact)


# Measured values


def _measured() -> Iterator[CraftedRun]:
    odd: tuple[Any, ...] = (None, 5, "x", [], [5], {"x": {"y": []}}, True)
    for key in ("score", "retain", "forget", "test", "val", "tow", "gap_closure", "intervals", "to_oracle", "attacks", "probe"):
        yield from _settings("metrics", METRICS, {key: (..., *odd)})
    yield from _settings(
        "metrics",
        METRICS,
        {
            "noise_floor": odd,
            "relearning": odd,
            "cannot_tell": (..., 5, "x", [5], [[]]),
            "key": (..., 5, None),
            "format": (..., "3", 1, []),
            "kind": (5, "x"),
            "compared_with": (..., *odd),
            "retain.map": ("x", [], 1e30, None),
            "retain.images": ("x", [], None),
            "attacks.loss": odd,
            "attacks.strongest": (5, "no such attack", []),
        },
    )
    for key in ("key", "people", "losses", "roc"):
        yield from _settings("metrics", CURVES, {key: (..., *odd)})


# Random values


def _drawn(seed: int, count: int) -> Iterator[CraftedRun]:
    """Yield runs in which one to three values of one JSON file, at any depth, are replaced or removed."""
    areas = {CONFIG: "config", PREPROCESSOR: "preprocessor", RECORD: "record", METRICS: "metrics", CURVES: "metrics", SPLIT: "split"}
    areas |= {"artefact.json": "artefact"}
    for number in range(count):
        name = sorted(areas)[number % len(areas)]
        yield CraftedRun(f"{name}: random values, {seed}-{number}", areas[name], _random_values(name, f"{seed}-{number}"))


def _random_values(name: str, seed: str) -> Corruption:
    def corrupt(run: Path) -> None:
        draws, file = random.Random(seed), _place(run, name)
        whole = read(file)
        for _ in range(draws.randint(1, 3)):
            if places := list(_containers(whole)):
                place, key = draws.choice(places)
                if draws.random() < 0.2 and isinstance(place, dict):
                    place.pop(key, None)
                elif isinstance(place, list):
                    place[min(int(key), len(place) - 1)] = draws.choice(ODD)
                else:
                    place[key] = draws.choice(ODD)
        write(file, whole)

    return _sealed(corrupt)


def _containers(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a JSON value, with each of its keys."""
    if isinstance(value, dict | list) and value:
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _containers(item)
