"""Model cards and data set cards for the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from .metrics import collapse
from .printable import escape_markdown
from .runs import Record
from .sets import EVALUATED

if TYPE_CHECKING:
    from .data.schema import Faces

MODEL_TEMPLATE, DATA_TEMPLATE = "model_card.md", "data_card.md"
SET_DESCRIPTIONS = {
    "retain": "training images of all other identities",
    "forget": "training images of the forget identities",
    "val": "unseen identities, used to choose epochs and options",
    "test": "unseen identities, used for evaluation only",
}
SCORES = {"map": "mAP", "accuracy": "accuracy"}
TASK = "image-classification"
UNKNOWN_LICENSE = "unknown"  # the identifier of the Hub
PAPER = "2407.12069"  # of the task, on arXiv
MAP_FORMAT = 3  # of metrics.json: from this one on, mAP leaves out labels that are positive on every photo
OUTDATED_MAP = (
    "mAP was measured by an older version, which counts a label that is positive on every photo of a set as 100 %; "
    "`oneshui evaluate` measures it again, from the stored predictions."
)


def has_outdated_map(metrics: Mapping[str, Any]) -> bool:
    """Return whether metrics contain mAP as an older version defined it."""
    stored = metrics.get("format")
    return metrics.get("score") == "map" and isinstance(stored, int) and stored < MAP_FORMAT


def model_card(
    record: Record,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    repo_id: str = "USER/NAME",
    prepared: Sequence[str] = (),
    *,
    with_people: bool = False,
    original: str | None = None,
    dataset_id: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Return the card of a run as Markdown with a YAML header.

    Args:
        record: The record as it is published. The card may contain all of it.
        config: The model's config.
        metrics: Content of `metrics.json`; empty where the model was not evaluated.
        repo_id: The repository of the card.
        prepared: The methods whose artefacts are published with the model.
        with_people: Whether the data they prepared for single people is published with them, encrypted.
        original: The repository of the model that an unlearned model was computed from, if the card may name it.
        dataset_id: The public repository of the data, if it is one on the Hub.
        license: The identifier of a licence; None if it is unknown.
        tags: Further tags.
    """
    from huggingface_hub import ModelCard, ModelCardData

    name = repo_id.rpartition("/")[2]
    data_name = dataset_id or record.dataset["name"]
    results = _results(data_name, dataset_id, metrics)
    score = _score(metrics)
    base = record.options.get("model")
    data = ModelCardData(
        pipeline_tag=TASK,
        library_name="transformers",
        license=license or UNKNOWN_LICENSE,
        datasets=[dataset_id] if dataset_id else None,
        metrics=[score] if score else None,
        tags=[*_tags(record), *tags],
        base_model=original or (base if base and "/" in base else None),
        **({"base_model_relation": "finetune"} if original else {}),
        model_name=name if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=_template(MODEL_TEMPLATE),
        model_name=name,  # the client moved the first one into the model-index
        repo_id=repo_id,
        original=original,
        record=record,
        report=record.report,
        options={k: v for k, v in record.report.get("method_options", {}).items() if v is not None},
        prepared=sorted(prepared),
        with_people=with_people,
        split=record.report.get("split") or {},
        data=record.dataset | {"name": data_name},
        license=license,
        paper=PAPER,
        architecture=config.get("model_type", "unknown"),
        side=config.get("image_size"),
        rows=_rows(metrics),
        collapse_mark=collapse.MARK if collapse.collapsed_sets(metrics.get("collapse")) else "",
        collapse_explanation=collapse.EXPLANATION,
        score=score,
        tow=metrics.get("tow"),
        gap_closure=metrics.get("gap_closure"),
        attacks=_attacks(metrics),
        difference=_difference(metrics),
        floor=_floor(metrics),
    )
    return str(card)


def data_card(faces: Faces, repo_id: str, *, names_kept: bool, left_out: int) -> str:
    """Return the card of a data set as Markdown with a YAML header. It contains counts, but no names of people.

    Args:
        faces: The data set as it is published.
        repo_id: The repository of the card.
        names_kept: Whether people and photos are published under their names.
        left_out: Number of photos that could not be read.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    from .data.check import class_balance, image_count_statistics

    name = repo_id.rpartition("/")[2]
    data = DatasetCardData(
        pretty_name=name,
        license=UNKNOWN_LICENSE,
        task_categories=[TASK],
        tags=["oneshui", "machine-unlearning", "faces"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    )
    card = DatasetCard.from_template(
        data,
        template_str=_template(DATA_TEMPLATE),
        name=name,
        repo_id=repo_id,
        task=faces.task.kind,
        images=len(faces),
        people=len(faces.people),
        spread={key: f"{value:g}" for key, value in image_count_statistics(faces).items()},
        labels=[(escape_markdown(label), share) for label, share in class_balance(faces).items()],
        names_kept=names_kept,
        left_out=left_out,
    )
    return str(card)


def _template(name: str) -> str:
    return resources.files(f"{__package__}.cards").joinpath(name).read_text(encoding="utf-8")


def _tags(record: Record) -> list[str]:
    method = record.report.get("method")
    return ["oneshui", "machine-unlearning", record.kind, *([method] if method else []), f"arxiv:{PAPER}"]


def _score(metrics: Mapping[str, Any]) -> str | None:
    """Return the key of the score that was measured."""
    return next((score for score in SCORES for name in EVALUATED if score in metrics.get(name, {})), None)


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of the table for each set that was measured."""
    score, collapsed = _score(metrics), collapse.collapsed_sets(metrics.get("collapse"))
    return [
        {
            "name": name + (collapse.MARK if name in collapsed else ""),
            "description": description,
            "images": metrics[name].get("images"),
            "people": metrics[name].get("people"),
            "score": _text(metrics[name].get(score), 2) + _ends(metrics, name, score, 1),
            "loss": _text(metrics[name].get("loss"), 4) + _ends(metrics, name, "loss", 3),
        }
        for name, description in SET_DESCRIPTIONS.items()
        if name in metrics
    ]


def _attacks(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of the table for each attack that was run, the strongest first."""
    attacks = metrics.get("attacks") or {}
    names = sorted((name for name in attacks if name != "strongest"), key=lambda name: name != attacks.get("strongest"))
    return [
        {
            "name": name.replace("_", "-"),
            "strongest": name == attacks.get("strongest"),
            "auc": _text(attacks[name].get("auc"), 3) + _bracket(attacks[name].get("interval"), 3),
            "best_direction": _text(attacks[name].get("auc_either_way"), 3),
        }
        for name in names
    ]


def _difference(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row of the table for each score of the difference of model and original that was measured."""
    found = metrics.get("difference") or {}
    scores = _difference_scores(found)
    floor = _difference_scores(found.get("oracle") or {})
    return [
        {
            "name": name,
            "candidates": str(owner["candidates"]),
            "chance": _text((owner["candidates"] + 1) / 2, 1),
            "rank": _text(owner.get("rank"), 1) + _bracket((owner.get("intervals") or {}).get("rank"), 1),
            "oracle": _text(((floor.get(name) or {}).get("owner") or {}).get("rank"), 1),
            "auc": _text(((score.get("people") or {}).get("test") or {}).get("auc"), 2),
        }
        for name, score in scores.items()
        if (owner := score.get("owner") or {}).get("candidates")
    ]


def _difference_scores(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    outputs = found.get("outputs") or {}
    named = {"loss rise": outputs.get("loss_rise"), "logit distance": outputs.get("logit_distance"), "weights": found.get("weights")}
    return {name: score for name, score in named.items() if score}


def _floor(metrics: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the noise floor in points of score; None where it is unknown."""
    floor = metrics.get("noise_floor")
    return {name: _text(floor.get(name), 1) for name in (*EVALUATED, "tow")} if floor else None


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ends(metrics: Mapping[str, Any], name: str, key: str | None, digits: int) -> str:
    return _bracket(((metrics.get("intervals") or {}).get(name) or {}).get(key), digits)


def _bracket(ends: Sequence[float] | None, digits: int) -> str:
    """Return an interval as text that follows its number; empty where there is none, or only one end may be published."""
    return f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends and len(ends) == 2 else ""


def _results(name: str, dataset_id: str | None, metrics: Mapping[str, Any]) -> list[Any]:
    """Return the numbers in the format of the Hub's model-index."""
    from huggingface_hub import EvalResult

    score = _score(metrics)
    values: list[tuple[str | None, str | None, str, float]] = [
        (split, kind, label, metrics[split][kind])
        for split in EVALUATED
        for kind, label in ((score, f"{SCORES.get(score or '')} (%)"), ("loss", "mean loss"))
        if metrics.get(split, {}).get(kind) is not None
    ]
    values += [
        (None, kind, label, metrics[kind])
        for kind, label in (("tow", "ToW (%)"), ("gap_closure", "gap closure"))
        if metrics.get(kind) is not None
    ]
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset_id or name.replace(" ", "-"),
            dataset_name=name,
            dataset_split=split,
            metric_type=kind,
            metric_name=f"{label}, {split}" if split else label,
            metric_value=value,
        )
        for split, kind, label, value in values
    ]
