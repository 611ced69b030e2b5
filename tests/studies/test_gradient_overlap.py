"""`gradient_overlap.py`: its cosines are those of plain autograd, and its rows follow from them."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gradient_overlap import ALL, Overlap, format_rows, measure_overlap, select_unseen

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.schema import TaskKind
from oneshui_hf.errors import UsageError
from oneshui_hf.methods import losses
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem

LAYERS = {
    "vit.embeddings": "vit.embeddings.",
    "vit.layers.0": "vit.layers.0.",
    "vit.layers.1": "vit.layers.1.",
    "vit.layernorm": "vit.layernorm.",
    "classifier": "classifier.",
    ALL: "",
}


def gradient_by_autograd(problem: ToyProblem, faces: FaceSet, prefix: str) -> torch.Tensor:
    """Return the gradient of the mean loss by all parameters whose name has this prefix, float64."""
    model = copy.deepcopy(problem.model).double()
    pixels, labels = faces.batch(torch.arange(len(faces)))
    labels = labels.double() if problem.task.kind == "multi_label" else labels
    losses(model(pixel_values=pixels.double()).logits, labels, problem.task.kind).mean().backward()
    return torch.cat([p.grad.flatten() for name, p in model.named_parameters() if name.startswith(prefix) and p.grad is not None])


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_cosines_are_those_of_plain_autograd(kind: TaskKind) -> None:
    problem = toy_problem(kind)
    train = problem.sets["train"]
    unseen = select_unseen(train, problem.sets["support"], 3)
    overlap = measure_overlap(problem.model, kind, unseen, train)
    assert overlap.layers == list(LAYERS)
    assert overlap.cosines.shape == (6, 3, 3)
    for index, prefix in enumerate(LAYERS.values()):
        on_unseen = [gradient_by_autograd(problem, unseen.subset(torch.tensor([row])), prefix) for row in range(3)]
        trained = [gradient_by_autograd(problem, train.subset(train.positions_of[person]), prefix) for person in unseen.identities.tolist()]
        for row, column in ((0, 0), (0, 1), (2, 0), (2, 2)):
            expected = torch.cosine_similarity(on_unseen[row], trained[column], dim=0).item()
            assert overlap.cosines[index, row, column].item() == pytest.approx(expected, abs=1e-4)
        for index_of_norm, gradients in enumerate((on_unseen, trained)):
            expected = sum(gradient.norm().item() for gradient in gradients) / 3
            assert overlap.norms[index_of_norm, index].item() == pytest.approx(expected, rel=1e-3)
    assert all(p.grad is None for p in problem.model.parameters())


def test_a_trained_photo_overlaps_with_itself_completely() -> None:
    problem = toy_problem("multi_label")
    train = problem.sets["train"]
    one_each = train.subset(torch.stack([positions[0] for positions in train.positions_of.values()]))
    overlap = measure_overlap(problem.model, "multi_label", one_each, one_each)
    torch.testing.assert_close(overlap.own_cosines(), torch.ones(6, len(one_each), dtype=torch.float64), rtol=0, atol=1e-5)
    assert overlap.other_cosines().max() < 1


def test_rows_compare_own_photos_with_those_of_other_people() -> None:
    cosines = torch.tensor([[[0.5, 0.1, 0.3], [0.2, 0.1, 0.1], [0.0, -0.2, 0.4]]], dtype=torch.float64)
    row, *_ = Overlap(["layer"], cosines, torch.tensor([[2.0], [1.0]])).rows()
    differences = torch.tensor([0.5 - 0.2, 0.1 - 0.15, 0.4 + 0.1])
    assert row["own"] == pytest.approx(1 / 3)
    assert row["others"] == pytest.approx((0.1 + 0.3 + 0.2 + 0.1 + 0.0 - 0.2) / 6)
    assert row["difference"] == pytest.approx(differences.mean().item())
    assert row["half_width"] == pytest.approx(1.96 * differences.std().item() / 3**0.5)
    assert row["auc"] == pytest.approx((2 + 0.5 + 2) / 6)  # the second person has one tie and one larger
    assert (row["norm_unseen"], row["norm_trained"]) == (2.0, 1.0)
    header, line = format_rows([row])
    assert line.split()[:6] == ["layer", "+0.333", "+0.083", "+0.250", "±", "0.315"]
    assert header.split()[:5] == ["layer", "own", "others", "difference", "AUC"]


def test_unseen_photos_are_one_per_training_person_and_never_trained_on() -> None:
    problem = toy_problem("multi_label")
    train, support = problem.sets["train"], problem.sets["support"]
    chosen = select_unseen(train, support, 100)
    assert sorted(chosen.identities.tolist()) == sorted(train.positions_of)
    assert not set(chosen.rows.tolist()) & set(train.rows.tolist())
    assert set(support.rows.tolist()) <= set(chosen.rows.tolist())
    for position, row in enumerate(chosen.rows.tolist()):  # labels and identity are those of the photo
        for faces in (support, train.reserved):
            assert faces is not None
            if row in faces.rows.tolist():
                index = faces.rows.tolist().index(row)
                assert torch.equal(chosen.labels[position], faces.labels[index])
                assert chosen.identities[position] == faces.identities[index]
    fewer = select_unseen(train, support, 3)
    assert len(fewer) == 3
    assert fewer.rows.tolist() == select_unseen(train, support, 3).rows.tolist()
    none = support.subset(torch.tensor([], dtype=torch.int64))
    with pytest.raises(UsageError, match="Fewer than two"):
        select_unseen(replace(train, reserved=None), none, 3)


def test_missing_run_is_reported_in_one_sentence(tmp_path: Path) -> None:
    script = Path(__file__).with_name("gradient_overlap.py")
    done = subprocess.run([sys.executable, script, tmp_path / "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "nothing" in done.stderr
