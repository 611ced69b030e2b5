"""The metrics as `evaluate.Metric` classes: thin shells that work offline, for pipelines that already speak `evaluate`.

from oneshui_hf.metrics.hf import MeanAveragePrecision
MeanAveragePrecision().compute(predictions=scores, references=labels)
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import torch

from .functional import gap_closure, mean_average_precision, tug_of_war

CITATION = "De Min et al., Unlearning Personal Data from a Single Image, TMLR 2025"


class _Offline(evaluate.Metric):  # type: ignore[misc]
    """A metric that keeps its inputs in memory: no cache folder, no download."""

    about: str
    features: datasets.Features

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **settings})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.about, citation=CITATION, inputs_description=self.about, features=self.features)


class MeanAveragePrecision(_Offline):
    """mAP over labels, in percent; labels without a positive are left out and counted."""

    about = "Mean average precision over the labels that have a positive, in percent. Higher is better."
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

    about = "ToW in percent from scores in percent: predictions of the unlearned model, references of the oracle, one a set."
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
