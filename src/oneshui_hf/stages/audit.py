"""The audit: what does an attacker learn who holds the original and the unlearned model, and photos of candidates?

    oneshui audit UNLEARNED --original ORIGINAL --candidates FOLDER
    oneshui audit UNLEARNED --original ORIGINAL --candidates FOLDER --oracle ORACLE --forgotten NAME --output-dir audit

Needs no training data and no run: each model is a folder with safetensors or a Hub id, see `auditing.models`. The result on the terminal
names candidates; what is written numbers them, unless `--keep-names` is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.face_set import FaceSet
from ..files import new_folder
from ..metrics.attacks.output_difference import output_difference
from ..metrics.attacks.weight_difference import row_spaces, weight_difference_scores
from ..metrics.outliers import most_outliers
from ..models.layer_inputs import layer_energies
from ..models.outputs import predict, predicted_labels
from ..processes import on_main
from ..reporting import SILENT, Reporter
from ..runs import with_checksum, write_json
from .audit_options import AUDIT, AuditOptions, check_audit
from .auditing import findings
from .auditing.candidates import Candidates, find_photos, read_pixels, true_labels
from .auditing.models import AuditedModel, open_model, require_comparable
from .distributed import make_accelerator

FORMAT = 1  # of audit.json


def audit(options: AuditOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Attack the difference of two models, and return who stands out among the candidates.

    Returns:
        `verdict`, `attacks`, `people` (with names) and the limits; docs/guides/auditing.md describes each. `output` is the folder that was
        written, None without `output_dir`.

    Raises:
        UsageError: The models cannot be compared or are the same, a name is no candidate's, or an option is wrong.
        OneshuiError: A model or the photos cannot be read, there are too few candidates, or the Hub cannot be reached.
    """
    check_audit(options)
    accelerator = make_accelerator()
    photos = find_photos(options, reporter)
    findings.forgotten_numbers(options.forgotten, sorted(set(photos.people)), options.candidates)  # before the models, which take longer
    original, *others = (
        open_model(name, accelerator.device, reporter) for name in (options.original, options.unlearned, options.oracle) if name is not None
    )
    for model in others:
        require_comparable(model, original)
    candidates = read_pixels(photos, original.preprocess.size, reporter)
    labels = true_labels(candidates.photos, original.task, options.label_names())
    forgotten = findings.forgotten_numbers(options.forgotten, candidates.people, options.candidates)
    measured = _Measurement(original, candidates, labels, accelerator, options.batch_size, reporter)
    scores = [measured.photo_scores(model, role) for model, role in zip(others, ("unlearned model", "oracle"), strict=False)]
    task = original.task
    untested = findings.untested_attacks(candidates.photo_counts, len(task.label_names) if task.kind == "multi_label" else 1)
    attacks = [findings.run_attacks(found, candidates.identities, forgotten, untested, options.seed) for found in scores]
    result = _result(options, candidates, forgotten, attacks, measured)
    result["models"] = {role: model.weights for role, model in zip(("original", "unlearned", "oracle"), (original, *others), strict=False)}
    if options.output_dir:
        on_main(accelerator, lambda: _write(Path(options.output_dir or ""), result, keep_names=options.keep_names))
    return result | {"output": options.output_dir}


@dataclass(frozen=True, eq=False)
class _Batches:
    """Preprocessed photos in batches, which can be iterated over several times."""

    faces: FaceSet
    size: int
    reporter: Reporter

    def __iter__(self) -> Iterator[torch.Tensor]:
        parts = torch.arange(len(self.faces)).split(self.size)
        for positions in self.reporter.track(parts, "Reading layer inputs", len(parts)):
            yield self.faces.batch(positions)[0]


class _Measurement:
    """The scores of all photos by the difference of a model from the original."""

    def __init__(
        self,
        original: AuditedModel,
        candidates: Candidates,
        labels: torch.Tensor | None,
        accelerator: Accelerator,
        batch_size: int,
        reporter: Reporter,
    ) -> None:
        self.original, self.accelerator, self.batch_size, self.reporter = original, accelerator, batch_size, reporter
        self.labels_given = labels is not None
        self.not_run: list[str] = []
        unlabelled = candidates.face_set(original.preprocess, torch.zeros(len(candidates.pixels)))
        self._logits = predict(original.model, unlabelled, accelerator, batch_size)
        self._labels = predicted_labels(self._logits, original.task.kind) if labels is None else labels
        self._faces = unlabelled

    def photo_scores(self, model: AuditedModel, role: str) -> dict[str, torch.Tensor]:
        """Return the scores of the photos, float64 (n,), by attack; `role` is what a note calls the model."""
        logits = predict(model.model, self._faces, self.accelerator, self.batch_size)
        outputs = output_difference(logits, self._logits, self._labels, self.original.task.kind)
        scores = {"loss_rise": outputs.loss_rise, "logit_distance": outputs.logit_distance}
        spaces = row_spaces(model.state(), self.original.state())
        batches = _Batches(self._faces, self.batch_size, self.reporter)
        if energies := layer_energies(self.original.model, spaces, batches, self.accelerator.device):
            scores["weight_difference"] = weight_difference_scores(energies)
        else:
            self.not_run.append(f"Weight difference: no linear layer of the {role} differs from the original.")
        return scores


def _result(
    options: AuditOptions,
    candidates: Candidates,
    forgotten: list[int],
    attacks: list[dict[str, findings.Attack]],
    measured: _Measurement,
) -> dict[str, Any]:
    own, oracle = attacks[0], attacks[1] if len(attacks) > 1 else {}
    people, count = candidates.people, len(candidates.pixels)
    notes = [*candidates.notes]
    if not measured.labels_given:
        notes.append("No labels of the photos are known, so the loss is that of the labels that the original predicts.")
    not_run = [*measured.not_run]
    if own["loss_rise"].outliers is None:
        not_run.append(
            f"The test of the loss rise, which is ranked only: below {findings.MIN_LOSSES} labels times photos it finds too many by chance."
        )
    if not options.oracle:
        not_run.append("The floor: without --oracle it is not known what the difference of an exact retraining would show.")
    if not forgotten:
        not_run.append("Ranks of the forgotten people: without --forgotten it is not known who they are.")
    return {
        "format": FORMAT,
        "verdict": findings.verdict(own, oracle, forgotten, len(people)),
        "candidates": len(people),
        "photos": count,
        "labels": "given" if measured.labels_given else "predicted",
        "family_wise_error": findings.FAMILY_WISE_ERROR,
        "most_outliers": most_outliers(len(people)),
        "attacks": findings.attack_fields(own),
        "oracle": findings.attack_fields(oracle) if oracle else None,
        "people": findings.people_fields(people, candidates.photo_counts, forgotten, own, oracle),
        "notes": notes,
        "not_run": not_run,
        "cannot_show": findings.limits(own, len(people), count, forgotten),
    }


def _write(folder: Path, result: dict[str, Any], *, keep_names: bool) -> None:
    """Write `audit.json` into a folder of its own, which only its owner can enter."""
    people = result["people"] if keep_names else [{key: row[key] for key in row if key != "name"} for row in result["people"]]
    with new_folder(folder, replace=True, private=True) as scratch:
        write_json(scratch / AUDIT, with_checksum(result | {"people": people}), private=True)
