"""What may be told of a run to the world: lists of what is published of each file. What is not named here stays private."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OneshuiError
from ...methods.base import VOCABULARY
from ...options import fields
from ...plugins import METHODS, Plugins
from ...public_names import LOCAL_DATASET, LOCAL_MODEL, METHOD_NAME, _builtin, dataset_name
from ...reporting import SILENT, Reporter
from ...runs import SPLIT, Record, Run, versions
from ..command_options import TrainOptions

REPORT_WORDS = {
    "labels": ("given", "guessed by the model"),
    "source": ("split", "photos handed in"),
    "found_by": ("photo", "name"),
}
METRIC_SETS = ("retain", "forget", "val", "test")
METRIC_NUMBERS = ("images", "people", "loss", "map", "accuracy", "balanced_accuracy", "labels_left_out")
METRIC_COMPARISONS = ("tow", "gap_closure")
METRIC_PARTS = {
    "noise_floor": (*METRIC_SETS, "tow", "gap_closure", "jensen_shannon", "auc_either_way", "oracles"),
    "relearning": ("steps", "at_most"),
}
ATTACKS = ("loss", "logistic", "rmia", "rmia_two_sided", "u_lira")
ATTACK_NUMBERS = ("auc", "interval", "auc_either_way", "balanced_accuracy", "smallest_fpr")
PREPROCESSOR_NUMBERS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_convert_rgb"),
)

KEY = re.compile(r"[a-z][a-z0-9_]*")
DISTRIBUTION = re.compile(r"[A-Za-z0-9][\w.-]* \d[\w.+!-]*")  # "oneshui-hf 0.1.0"
VERSION = re.compile(r"\d[\w.+!-]*")
HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Private:
    """Words that must not leave this machine: names of people and photos, whole; folders, wherever they occur.

    Names of digits alone are not looked for: every layer number would be taken for a person.
    """

    names: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()

    @classmethod
    def of(cls, run: Run) -> Private:
        """Collect them from a run's split, options and place."""
        from ...data.split import load_split

        names: set[str] = set()
        if (run.path / SPLIT).exists():
            split = load_split(run.path / SPLIT)
            for people in (*split.people.values(), split.forget):
                names.update(people)
            for photos in (split.support, split.reserved):
                names.update(photos, photos.values())
        told = [*run.record.options.values(), *(run.record.parent or {}).values(), str(run.path.resolve())]
        folders = {value for value in told if isinstance(value, str) and Path(value).is_absolute()}
        return cls(frozenset(name for name in names if not name.isdigit()), frozenset(folders))

    def within(self, words: Iterable[str]) -> bool:
        """Whether one of the words is private."""
        return any(word in self.names or any(folder in word for folder in self.folders) for word in words)


def numbers(value: Any, private: Private = Private()) -> Any:
    """Return the numbers of a value, at any depth. Text goes, and so do keys that are no plain word or are private."""

    def stays(key: str, item: Any) -> bool:
        return _numeric(item) and KEY.fullmatch(key) is not None and not private.within([key])

    if isinstance(value, Mapping):
        return {key: numbers(item, private) for key, item in value.items() if stays(key, item)}
    if isinstance(value, list | tuple):
        return [numbers(item, private) for item in value if _numeric(item)]
    return value if _numeric(value) else None


def _numeric(value: Any) -> bool:
    """Whether a value is a number, true, false, nothing, or may hold some."""
    return value is None or isinstance(value, int | float | Mapping | list | tuple)


def public_record(record: Record, config: Mapping[str, Any], private: Private, reporter: Reporter = SILENT) -> Record:
    """Return the record without paths, names and free text."""
    parent = (record.parent or {}).get("weights")
    return Record(
        kind=record.kind,
        seed=int(record.seed),
        options=_public_options(record.options),
        dataset=_public_dataset(record, config),
        parent={"weights": parent} if _is(HASH, parent) else None,
        weights=record.weights,
        report=_public_report(record.report, private, reporter),
        versions=public_versions(record.versions),
    )


def _public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the training: never a path, a folder's name, or the columns of somebody's table."""
    plain = {name: value for name, value in options.items() if _harmless(name, value, TrainOptions)}
    model = options.get("model")
    return plain | {
        "dataset": _builtin(options.get("dataset")) or LOCAL_DATASET,
        "model": model if _onhub(model) else LOCAL_MODEL,
    }


def _harmless(name: str, value: Any, declared: type[Any] | None) -> bool:
    """Whether an option's value is a number, or one of the words that the option offers."""
    known = fields(declared) if declared else {}
    choices = known[name].metadata.get("choices", ()) if name in known else ()
    number = value is None or isinstance(value, int | float)
    return value in choices or (number and (declared is None or name in known))


def _onhub(model: Any) -> bool:
    """Whether a model's name is a Hub id (or "tiny"), not a path."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not Path(model).exists()


def _public_dataset(record: Record, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of the data. Label names are in the model's config already."""
    own, names = record.dataset, config.get("id2label", {})
    return {
        "name": dataset_name(record),
        "fingerprint": own.get("fingerprint") if _is(HASH, own.get("fingerprint")) else None,
        "task": own.get("task") if own.get("task") in ("multi_label", "single_label") else None,
        "labels": [names[number] for number in sorted(names, key=int)],
        "images": numbers(own.get("images")),
        "identities": numbers(own.get("identities")),
    }


def _public_report(report: Mapping[str, Any], private: Private, reporter: Reporter) -> dict[str, Any]:
    public: dict[str, Any] = numbers({k: v for k, v in report.items() if k != "method_options"}, private)
    public |= {name: report[name] for name, known in REPORT_WORDS.items() if report.get(name) in known}
    if "reads" in report:
        public["reads"] = [name for name in report["reads"] if name in VOCABULARY]
    if _is(METHOD_NAME, report.get("method")):
        public["method"] = report["method"]
        public["method_options"] = public_method_options(report["method"], report.get("method_options", {}), reporter)
    if _is(DISTRIBUTION, report.get("method_from")):
        public["method_from"] = report["method_from"]
    return public


def public_method_options(method: str, options: Mapping[str, Any], reporter: Reporter = SILENT) -> dict[str, Any]:
    """Return a method's options that are numbers or offered words; tell what is left out."""
    try:
        declared = Plugins(METHODS).load(method).options
    except OneshuiError:  # not installed here, so none of its words is known
        declared = None
    public: dict[str, Any] = {}
    for name, value in options.items():
        if KEY.fullmatch(name) and _harmless(name, value, declared):
            public[name] = value
        else:
            reporter.warn(f"Option '{name}' of '{method}' is free text and is not published; its default will be used.")
    return public


def public_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known numbers of `metrics.json`."""
    public: dict[str, Any] = {
        name: {key: numbers(metrics[name][key]) for key in METRIC_NUMBERS if key in metrics[name]}
        for name in METRIC_SETS
        if name in metrics
    }
    public |= {name: numbers(metrics[name]) for name in METRIC_COMPARISONS if name in metrics}
    for name, keys in METRIC_PARTS.items():
        found = metrics.get(name)
        public[name] = {key: numbers(found[key]) for key in keys if key in found} if found else None
    public["intervals"] = _public_intervals(metrics.get("intervals") or {})
    public["attacks"] = _public_attacks(metrics.get("attacks") or {})
    compared = metrics.get("compared_with") or {}
    public["compared_with"] = {name: compared.get(name) if _is(HASH, compared.get(name)) else None for name in ("original", "oracle")}
    return public


def _public_intervals(found: Mapping[str, Any]) -> dict[str, Any]:
    public = {name: numbers(found[name]) for name in ("level", "resamples", "tow", "gap_closure") if name in found}
    scores = ("loss", "map", "accuracy")
    sets = {name: {key: numbers(found[name][key]) for key in scores if key in found[name]} for name in METRIC_SETS if name in found}
    return public | sets


def _public_attacks(found: Mapping[str, Any]) -> dict[str, Any]:
    public: dict[str, Any] = {
        name: {key: numbers(found[name][key]) for key in ATTACK_NUMBERS if key in found[name]} for name in ATTACKS if name in found
    }
    return public | {"strongest": found.get("strongest") if found.get("strongest") in ATTACKS else None}


def public_versions(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of the packages that a record names."""
    return {name: found[name] for name in versions() if _is(VERSION, found.get(name))}


def public_config(config: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return the entries that a config of this architecture has, without those that hold a path."""
    from transformers import AutoConfig

    from ...models import sharded  # noqa: F401  tells transformers of the architecture

    try:
        known = AutoConfig.for_model(config.get("model_type", "")).to_dict().keys() - {"_name_or_path"}
    except ValueError:
        raise OneshuiError(f"transformers knows no architecture '{config.get('model_type')}' of {run.path}.") from None
    labels = ("id2label", "label2id")
    return {
        key: value
        for key, value in config.items()
        if key in known and (key in labels or not any("/" in word or "\\" in word for word in strings(value)))
    }


def public_preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the preprocessing, and the class that reads them."""
    plain = {key: numbers(config[key]) for key in PREPROCESSOR_NUMBERS if key in config}
    kind = config.get("image_processor_type")
    return plain | ({"image_processor_type": kind} if isinstance(kind, str) and kind.isidentifier() else {})


def _is(shape: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and shape.fullmatch(value) is not None


def strings(value: Any) -> Iterator[str]:
    """Yield all text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
