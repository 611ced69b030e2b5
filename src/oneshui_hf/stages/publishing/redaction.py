"""What may be published of a run: a list of the public contents of each file. Everything that is not listed stays private."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OneshuiError
from ...methods.base import READABLE_SETS
from ...metrics.attack_names import ATTACKS
from ...options import current_names, fields
from ...plugins import METHODS, Plugins
from ...public_names import LOCAL_MODEL, METHOD_NAME, dataset_name, public_dataset_name
from ...reporting import SILENT, Reporter
from ...runs import SPLIT, Record, Run, versions
from ...sets import EVALUATED
from ..command_options import TrainOptions

REPORT_WORDS = {
    "labels": ("given", "guessed by the model"),
    "source": ("split", "request"),
    "found_by": ("photo", "name"),
}
PHOTO_NUMBERS = (
    "support_loss",
    "support_unlike",
    "similarity",
    "lead",
)  # of single photos: whoever has a photo and the model can compute them, and compare
METRIC_NUMBERS = ("images", "people", "loss", "map", "accuracy", "balanced_accuracy", "labels_left_out")
METRIC_COMPARISONS = ("tow", "gap_closure")
METRIC_PARTS = {
    "noise_floor": (*EVALUATED, "tow", "gap_closure", "jensen_shannon", "auc_either_way", "oracles"),
    "relearning": ("steps", "at_most"),
}
_PERSON_LEVEL = dict.fromkeys(("people", "unseen_people", "auc", "interval", "auc_either_way"))
_SEPARATIONS = dict.fromkeys(("retain", "test"), dict.fromkeys(("auc", "interval")))
_RANKS = dict.fromkeys(("rank", "rank_1_share", "photo_rank", "support_rank"))
_OWNER = _RANKS | dict.fromkeys(("people", "candidates", "batch_share")) | {"intervals": _RANKS}
_DIFFERENCE_SCORE = {"photos": _SEPARATIONS, "people": _SEPARATIONS, "owner": _OWNER}
_DIFFERENCE = {
    "outputs": {"loss_rise": _DIFFERENCE_SCORE, "logit_distance": _DIFFERENCE_SCORE},
    "weights": _DIFFERENCE_SCORE | dict.fromkeys(("layers", "numbers_left_out")),
}
_CHANGES = dict.fromkeys(("mean", "sd", "worst_tenth"))  # the largest is that of a single person
_CHANGED_SET = {"people": None, "loss_change": _CHANGES, "beyond_spread": None, "exposure_change": _CHANGES}
_CHANGED_SETS = dict.fromkeys(("retain", "test"), _CHANGED_SET)
_GROUP = dict.fromkeys(("label", "people_with", "people_without", "difference", "interval", "p_value", "oracle", "differs"))
_RECOVERY = dict.fromkeys(("lr", "steps", "loss_before", "loss_after", "score_before", "score_after", "recovery", "interval"))
_ROUNDED_MODEL = {
    **dict.fromkeys((*EVALUATED, "forget_loss")),
    "attacks": dict.fromkeys(ATTACKS, dict.fromkeys(("auc", "interval", "auc_either_way"))),
}
_ROUNDED = {
    **dict.fromkeys(("unlearned", "original", "oracle"), _ROUNDED_MODEL),
    **dict.fromkeys(("gap_closure", "gap_closure_interval", "update_kept")),
}
_SIMILARITIES = dict.fromkeys(("unlearned", "original"), dict.fromkeys(("cka", "neighbours")))
_FURTHER = {
    "few_shot_relearning": {
        "people": None,
        **dict.fromkeys(("unlearned", "oracle"), _RECOVERY),
        "excess": dict.fromkeys(("value", "interval")),
    },
    "quantization": dict.fromkeys(("float32", "bf16", "int8", "int4"), _ROUNDED),
    "inversion": dict.fromkeys(
        ("rank", "candidates", "cosine", "correlation", "correlation_of_others", "psnr", "psnr_of_others"),
    ),
    "representation": {"k": None, "forget": _SIMILARITIES, "test": _SIMILARITIES},
}
METRIC_TREES: Mapping[str, Mapping[str, Any]] = {
    "collapse": dict.fromkeys(("retain", "test"), dict.fromkeys(("drop", "limit"))) | {"collapsed": None},
    "person_level": _PERSON_LEVEL | {"oracle": _PERSON_LEVEL},
    "difference": _DIFFERENCE | {"oracle": _DIFFERENCE},
    "further": _FURTHER,
    "bystanders": _CHANGED_SETS | {"oracle": _CHANGED_SETS, "groups": {"retain": _GROUP, "test": _GROUP, "left_out": None}, "level": None},
}
ATTACK_NUMBERS = ("auc", "interval", "auc_either_way", "balanced_accuracy", "smallest_fpr")
PREPROCESSOR_NUMBERS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_convert_rgb", "do_flip_channel_order"),
)

KEY = re.compile(r"[a-z][a-z0-9_]*")
DISTRIBUTION = re.compile(r"[A-Za-z0-9][\w.-]* \d[\w.+!-]*")  # "oneshui-hf 0.1.0"
VERSION = re.compile(r"\d[\w.+!-]*")
HASH = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class PrivateTerms:
    """Text that must not leave this machine.

    Names that consist of digits are not included: every layer number would match.

    Attributes:
        names: Names of identities and photos; a text is private if it equals one.
        folders: Folders; a text is private if it contains one.
    """

    names: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()

    @classmethod
    def of_run(cls, run: Run) -> PrivateTerms:
        """Collect the terms from a run's split, options and path."""
        from ...data.split import load_split

        names: set[str] = set()
        if (run.path / SPLIT).exists():
            split = load_split(run.path / SPLIT)
            for people in (*split.people.values(), split.forget):
                names.update(people)
            for photos in (split.support, split.reserved):
                names.update(photos, photos.values())
        values = [*run.record.options.values(), *(run.record.parent or {}).values(), str(run.path.resolve())]
        folders = {value for value in values if isinstance(value, str) and Path(value).is_absolute()}
        return cls(frozenset(name for name in names if not name.isdigit()), frozenset(folders))

    def occurs_in(self, texts: Iterable[str]) -> bool:
        """Return whether one of the texts is private."""
        return any(text in self.names or any(folder in text for folder in self.folders) for text in texts)


def keep_numbers(value: Any, private: PrivateTerms = PrivateTerms()) -> Any:
    """Return a JSON value with its numbers, at any depth. Text is removed, and so are keys that are private or not a plain word."""

    def is_public(key: str, item: Any) -> bool:
        return _is_number_or_container(item) and KEY.fullmatch(key) is not None and not private.occurs_in([key])

    if isinstance(value, Mapping):
        return {key: keep_numbers(item, private) for key, item in value.items() if is_public(key, item)}
    if isinstance(value, list | tuple):
        return [keep_numbers(item, private) for item in value if _is_number_or_container(item)]
    return value if _is_number_or_container(value) else None


def _is_number_or_container(value: Any) -> bool:
    """Return whether a value is a number, a boolean or None, or may contain some."""
    return value is None or isinstance(value, int | float | Mapping | list | tuple)


def public_record(record: Record, config: Mapping[str, Any], private: PrivateTerms, reporter: Reporter = SILENT) -> Record:
    """Return the record without paths, names and free text."""
    parent = (record.parent or {}).get("weights")
    return Record(
        kind=record.kind,
        seed=int(record.seed),
        options=public_training_options(record.options),
        dataset=_public_dataset(record, config),
        parent={"weights": parent} if _matches(HASH, parent) else None,
        weights=record.weights,
        report=_public_report(record.report, private, reporter),
        versions=public_versions(record.versions),
    )


def public_training_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training options without paths, folder names and column names of private tables."""
    public = {name: value for name, value in options.items() if _is_public_value(name, value, TrainOptions)}
    model = options.get("model")
    public |= {"dataset": public_dataset_name(options.get("dataset")), "model": model if is_hub_id(model) else LOCAL_MODEL}
    if is_hub_id(model) and _matches(COMMIT, options.get("model_revision")):  # the name of a branch may be anything
        public["model_revision"] = options["model_revision"]
    return public


def _is_public_value(name: str, value: Any, declared: type[Any] | None) -> bool:
    """Return whether an option's value is a number, or one of the option's choices."""
    known = fields(declared) if declared else {}
    choices = known[name].metadata.get("choices", ()) if name in known else ()
    number = value is None or isinstance(value, int | float)
    return value in choices or (number and (declared is None or name in known))


def is_hub_id(model: Any) -> bool:
    """Return whether the name of a model or data set is a Hub id (or a word such as "tiny"), not a path."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not isinstance(model, str):
        return False
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not Path(model).exists()


def _public_dataset(record: Record, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the public description of the data. Label names are public, because the model's config contains them."""
    stored, names = record.dataset, config.get("id2label") or {}
    return {
        "name": dataset_name(record),
        "fingerprint": stored.get("fingerprint") if _matches(HASH, stored.get("fingerprint")) else None,
        "task": stored.get("task") if stored.get("task") in ("multi_label", "single_label") else None,
        "labels": [names[number] for number in sorted(names, key=int)],
        "images": keep_numbers(stored.get("images")),
        "identities": keep_numbers(stored.get("identities")),
    }


def _public_report(report: Mapping[str, Any], private: PrivateTerms, reporter: Reporter) -> dict[str, Any]:
    public: dict[str, Any] = keep_numbers({k: v for k, v in report.items() if k not in ("method_options", *PHOTO_NUMBERS)}, private)
    public |= {name: report[name] for name, known in REPORT_WORDS.items() if report.get(name) in known}
    if "reads" in report:
        public["reads"] = [name for name in report["reads"] if name in READABLE_SETS]
    if _matches(METHOD_NAME, report.get("method")):
        public["method"] = report["method"]
        public["method_options"] = public_method_options(report["method"], report.get("method_options", {}), reporter)
    if _matches(DISTRIBUTION, report.get("method_from")):
        public["method_from"] = report["method_from"]
    return public


def public_method_options(method: str, options: Mapping[str, Any], reporter: Reporter = SILENT) -> dict[str, Any]:
    """Return a method's options that are numbers or declared choices; warn about those left out."""
    try:
        declared = Plugins(METHODS).load(method).options
    except OneshuiError:  # not installed here, so its choices are not known
        declared = None
    public: dict[str, Any] = {}
    for name, value in (current_names(declared, options) if declared else options).items():
        if KEY.fullmatch(name) and _is_public_value(name, value, declared):
            public[name] = value
        else:
            reporter.warn(f"Option '{name}' of '{method}' is free text and is not published; its default will be used.")
    return public


def public_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the listed numbers of `metrics.json`."""
    public: dict[str, Any] = {
        name: {key: keep_numbers(metrics[name][key]) for key in METRIC_NUMBERS if key in metrics[name]}
        for name in EVALUATED
        if name in metrics
    }
    public |= {name: keep_numbers(metrics[name]) for name in METRIC_COMPARISONS if name in metrics}
    for name, keys in METRIC_PARTS.items():
        part = metrics.get(name)
        public[name] = {key: keep_numbers(part[key]) for key in keys if key in part} if part else None
    public |= {name: _listed_numbers(metrics[name], keys) for name, keys in METRIC_TREES.items() if name in metrics}
    public["intervals"] = _public_intervals(metrics.get("intervals") or {})
    public["attacks"] = _public_attacks(metrics.get("attacks") or {})
    compared = metrics.get("compared_with") or {}
    public["compared_with"] = {name: compared.get(name) if _matches(HASH, compared.get(name)) else None for name in ("original", "oracle")}
    return public


def _listed_numbers(value: Any, keys: Mapping[str, Any] | None) -> Any:
    """Return the numbers of a nested JSON value under the listed keys; those of all keys are numbers where none are listed."""
    if value is None or keys is None:
        return keep_numbers(value)
    if isinstance(value, list):
        return [_listed_numbers(item, keys) for item in value]
    return {name: _listed_numbers(value[name], inner) for name, inner in keys.items() if name in value}


def _public_intervals(found: Mapping[str, Any]) -> dict[str, Any]:
    public = {name: keep_numbers(found[name]) for name in ("level", "resamples", "tow", "gap_closure") if name in found}
    scores = ("loss", "map", "accuracy")
    sets = {name: {key: keep_numbers(found[name][key]) for key in scores if key in found[name]} for name in EVALUATED if name in found}
    return public | sets


def _public_attacks(found: Mapping[str, Any]) -> dict[str, Any]:
    public: dict[str, Any] = {
        name: {key: keep_numbers(found[name][key]) for key in ATTACK_NUMBERS if key in found[name]} for name in ATTACKS if name in found
    }
    return public | {"strongest": found.get("strongest") if found.get("strongest") in ATTACKS else None}


def public_versions(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of the packages that every record lists."""
    return {name: found[name] for name in versions() if _matches(VERSION, found.get(name))}


def public_config(config: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return the entries that a config of this architecture has, without those that contain a path."""
    from transformers import AutoConfig

    from ...models.register import register

    register()
    try:
        known = AutoConfig.for_model(config.get("model_type", "")).to_dict().keys() - {"_name_or_path"}
    except ValueError:
        raise OneshuiError(f"transformers does not have the architecture '{config.get('model_type')}' of {run.path}.") from None
    labels = ("id2label", "label2id", "label_names")  # the last for models of timm
    return {
        key: value
        for key, value in config.items()
        if key in known and (key in labels or not any("/" in text or "\\" in text for text in iter_strings(value)))
    }


def public_preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the preprocessing, and its class."""
    public = {key: keep_numbers(config[key]) for key in PREPROCESSOR_NUMBERS if key in config}
    kind = config.get("image_processor_type")
    return public | ({"image_processor_type": kind} if isinstance(kind, str) and kind.isidentifier() else {})


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def iter_strings(value: Any) -> Iterator[str]:
    """Yield all text in a JSON value, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from iter_strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from iter_strings(item)
