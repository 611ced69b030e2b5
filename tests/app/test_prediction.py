"""Bars and costs, compared with values that are computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oneshui_hf.app.prediction import label_bars, photo_costs, unseen_ranges
from oneshui_hf.runs import PREDICTIONS, SPLIT, Run
from oneshui_hf.stages.evaluation.predictions import predictions_key, sealed_bytes, sealed_file


def test_bars_are_sorted_by_probability_and_then_by_change() -> None:
    before, after = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([0.25, 0.3, 0.5])
    assert [bar.label for bar in label_bars("abc", before)] == ["b", "c", "a"]
    bars = label_bars("abc", before, after, torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))
    assert [bar.label for bar in bars] == ["b", "a", "c"]
    assert (bars[0].low, bars[0].high) == (pytest.approx(0.2), pytest.approx(0.5))
    assert bars[0].change == pytest.approx(-0.6)
    assert label_bars("a", before[:1])[0].change == 0


def test_costs_of_attributes_by_hand() -> None:
    before, after = torch.tensor([[2.0, -1.0], [0.5, 0.5]]), torch.tensor([[2.0, 1.0], [0.5, -0.5]])
    found = photo_costs(before, after, "multi_label")
    assert (found.photos, found.changed_labels, found.changed_photos) == (2, 0.5, 1.0)
    one, half = (1 / (1 + np.exp(-1)) - 1 / (1 + np.exp(1))), (1 / (1 + np.exp(-0.5)) - 1 / (1 + np.exp(0.5)))
    assert found.probability_change == pytest.approx((one + half) / 4, abs=1e-6)
    assert found.largest_change == pytest.approx(one, abs=1e-6)


def test_costs_of_classes_by_hand() -> None:
    before, after = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    found = photo_costs(before, after, "single_label")
    assert (found.changed_labels, found.changed_photos) == (0.5, 0.5)
    assert found.largest_change == pytest.approx(np.tanh(0.5), abs=1e-6)


def test_unseen_ranges_are_the_quantiles_of_the_stored_predictions_on_val(built: Run, tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "run"
    shutil.copytree(built.path, path)
    run = Run.open(path)
    assert unseen_ranges(run) is None
    (path / SPLIT).write_text("{}")
    assert unseen_ranges(run) is None
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    tensors = {"logits": logits, "labels": torch.zeros(50, 3), "losses": torch.zeros(50), "identities": torch.zeros(50, dtype=torch.int64)}
    (path / PREDICTIONS).mkdir()
    file = sealed_file(path / PREDICTIONS, "val")
    file.write_bytes(sealed_bytes(tensors, "val", 0, predictions_key(run, 64)))
    found = unseen_ranges(run)
    assert found is not None
    expected = np.quantile(1 / (1 + np.exp(-logits.double().numpy())), (0.05, 0.95), axis=0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    file.write_bytes(sealed_bytes(tensors, "val", 0, "another model"))
    assert unseen_ranges(run) is None
