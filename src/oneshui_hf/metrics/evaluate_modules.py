"""The metrics as `evaluate.Metric` classes: thin wrappers that work offline, for pipelines that use `evaluate`.

from oneshui_hf.metrics.evaluate_modules import MeanAveragePrecision
MeanAveragePrecision().compute(predictions=scores, references=labels)
"""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import evaluate
import torch

from ..data.schema import TaskKind
from ..models.outputs import losses
from ..seeding import generator
from .attack_scores import auc
from .attack_signals import Signals, label_log_probabilities
from .attacks import rmia
from .functional import accuracy, balanced_accuracy, gap_closure, identity_loss_gap, jensen_shannon, mean_average_precision, tug_of_war

CITATION = "De Min et al., Unlearning Personal Data from a Single Image, TMLR 2025"

_LOGITS = datasets.Sequence(datasets.Value("float32"))
_PREDICTED: list[datasets.Features] = [  # references are attributes, or classes
    datasets.Features({"predictions": _LOGITS, "references": datasets.Sequence(datasets.Value("int8"))}),
    datasets.Features({"predictions": _LOGITS, "references": datasets.Value("int64")}),
]


def _tensors(predictions: list[list[float]], references: list[list[int]] | list[int]) -> tuple[torch.Tensor, torch.Tensor, TaskKind]:
    """Return logits, labels and the task: classes as references make it a single-label one."""
    labels = torch.tensor(references)
    return torch.tensor(predictions), labels, "multi_label" if labels.dim() == 2 else "single_label"


class _Offline(evaluate.Metric):  # type: ignore[misc]
    """A metric that keeps its inputs in memory: no cache folder, no download."""

    about: str
    features: ClassVar[datasets.Features | list[datasets.Features]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **settings})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.about, citation=CITATION, inputs_description=self.about, features=self.features)


class MeanAveragePrecision(_Offline):
    """mAP over labels, in percent; labels that are constant on the photos are left out and counted."""

    about = "Mean average precision over the labels with a positive and a negative photo, in percent. Higher is better."
    features = datasets.Features(
        {
            "predictions": datasets.Sequence(datasets.Value("float32")),
            "references": datasets.Sequence(datasets.Value("int8")),
        }
    )

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        value, left_out = mean_average_precision(torch.tensor(predictions), torch.tensor(references))
        return {"map": value, "labels_left_out": left_out}


_SCORES = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})


class TugOfWar(_Offline):
    """ToW: a prediction is the unlearned model's score on a set, its reference the oracle's."""

    about = "ToW in percent from scores in percent: predictions of the unlearned model, references of the oracle, one per set."
    features = _SCORES

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        sets = range(len(predictions))
        return {"tow": tug_of_war({str(i): predictions[i] for i in sets}, {str(i): references[i] for i in sets})}


class GapClosure(_Offline):
    """Gap closure per request: predictions are unlearned scores on the forget set, references the oracle's."""

    about = "Share of the gap between original and oracle that is closed on the forget set; give original=[...] as scores."
    features = _SCORES

    def _compute(self, predictions: list[float], references: list[float], original: list[float]) -> dict[str, float]:
        closures = [gap_closure(o, u, r) for o, u, r in zip(original, predictions, references, strict=True)]
        return {"gap_closure": sum(closures) / len(closures)}


class Accuracy(_Offline):
    """Share of photos whose most likely class is correct, in percent."""

    about = "Share of photos whose highest logit is that of the class in references, in percent. Higher is better."
    features = _PREDICTED[1]

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        return {"accuracy": accuracy(torch.tensor(predictions), torch.tensor(references))}


class Loss(_Offline):
    """Mean loss of logits: binary cross-entropy over attributes, or cross-entropy."""

    about = "Mean loss of logits; classes as references make it a cross-entropy, attributes a binary one. Lower is better."
    features: ClassVar[list[datasets.Features]] = _PREDICTED

    def _compute(self, predictions: list[list[float]], references: list[list[int]] | list[int]) -> dict[str, float]:
        logits, labels, kind = _tensors(predictions, references)
        per_photo = losses(logits, labels.float() if kind == "multi_label" else labels, kind)
        return {"loss": per_photo.double().mean().item()}


class BalancedAccuracy(_Offline):
    """Balanced accuracy of logits, in percent; references are 0/1 per attribute, or classes."""

    about = "Balanced accuracy in percent of logits, over the labels that occur; classes as references make it a single-label task."
    features: ClassVar[list[datasets.Features]] = _PREDICTED

    def _compute(self, predictions: list[list[float]], references: list[list[int]] | list[int]) -> dict[str, float]:
        value, left_out = balanced_accuracy(*_tensors(predictions, references))
        return {"balanced_accuracy": value, "labels_left_out": left_out}


class JensenShannon(_Offline):
    """Jensen-Shannon divergence between two models' logits on the same photos, in nats."""

    about = "Mean Jensen-Shannon divergence in nats between the logits of two models; give kind='single_label' for a softmax."
    features = datasets.Features({"predictions": _LOGITS, "references": _LOGITS})

    def _compute(self, predictions: list[list[float]], references: list[list[float]], kind: TaskKind = "multi_label") -> dict[str, float]:
        return {"jensen_shannon": jensen_shannon(torch.tensor(predictions), torch.tensor(references), kind)}


class IdentityLossGap(_Offline):
    """Loss per person minus the oracle's: predictions are the unlearned model's losses, references the oracle's, one per photo."""

    about = "Mean and largest absolute gap, over people, between losses of two models; give identities=[...], integers, one per photo."
    features = _SCORES

    def _compute(self, predictions: list[float], references: list[float], identities: list[int]) -> dict[str, float]:
        unlearned, oracle = (torch.tensor(x, dtype=torch.float64) for x in (predictions, references))
        gap = identity_loss_gap(unlearned, oracle, torch.tensor(identities))
        return {"mean_gap": gap.mean, "largest_gap": gap.largest}


class AttackAUC(_Offline):
    """AUC of a membership attack: predictions are scores, references 1 for members and 0 for non-members."""

    about = "Probability that a member scores above a non-member, ties counting half; 0.5 is ideal."
    features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int8")})

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        scores, members = torch.tensor(predictions, dtype=torch.float64), torch.tensor(references) != 0
        return {"auc": auc(scores[members], scores[~members])}


class RMIA(_Offline):
    """RMIA: predictions are the attacked model's logits, references the labels, of members, non-members and population together."""

    about = (
        "RMIA's AUC, 0.5 is ideal. Give roles=[...] ('member', 'nonmember' or 'population'), identities=[...] (integers, one per photo), "
        "and others=[[...]], the logits of models not trained on the members, on the same photos; a and gamma as in `attacks.rmia`."
    )
    features: ClassVar[list[datasets.Features]] = _PREDICTED

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[int]] | list[int],
        roles: list[str],
        identities: list[int],
        others: list[list[list[float]]],
        a: float = 0.3,
        gamma: float = 2.0,
        seed: int = 0,
    ) -> dict[str, float]:
        logits, labels, kind = _tensors(predictions, references)
        target, references_out = (label_log_probabilities(of, labels, kind) for of in (logits, torch.tensor(others)))
        masks = {role: torch.tensor([one == role for one in roles]) for role in ("member", "nonmember", "population")}
        members, nonmembers, population = (Signals(target[mask], references_out[:, mask]) for mask in masks.values())
        people = torch.tensor(identities)
        result = rmia(
            members,
            nonmembers,
            population,
            (people[masks["member"]], people[masks["nonmember"]]),
            generator(seed, "attack", "rmia"),
            a=a,
            gamma=gamma,
        )
        return {"auc": result.auc, "auc_either_way": result.auc_best_direction, "smallest_fpr": result.smallest_fpr}
