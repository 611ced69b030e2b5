"""Metrics against scikit-learn, torchmetrics and closed forms, and the same through `evaluate`."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from oneshui_hf.data.schema import Task, TaskKind
from oneshui_hf.metrics.functional import (
    accuracy,
    average_precision,
    balanced_accuracy,
    gap_closure,
    identity_loss_gap,
    identity_losses,
    is_scorable,
    jensen_shannon,
    mean_average_precision,
    score,
    tug_of_war,
)


def draw(seed: int, count: int, labels: int, levels: int = 10**6, share: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores on that many levels (few levels: many ties), and 0/1 labels."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (count, labels), generator=rng) / levels
    return scores, (torch.rand(count, labels, generator=rng) < share).float()


def reference(scores: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """scikit-learn's value per label, NaN where a label has no positive."""
    columns = zip(labels.T.numpy(), scores.T.numpy(), strict=True)
    return [average_precision_score(y, s) if y.any() else math.nan for y, s in columns]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 80), st.integers(1, 6), st.sampled_from([1, 2, 5, 10**6]), st.floats(0, 1))
def test_average_precision_matches_scikit_learn(seed: int, count: int, labels: int, levels: int, share: float) -> None:
    scores, truth = draw(seed, count, labels, levels, share)
    ours = average_precision(scores, truth)
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours.numpy(), reference(scores, truth), rtol=0, atol=1e-12)


def test_logits_far_from_zero_are_ranked() -> None:
    scores = torch.tensor([[30.0], [31.0], [32.0], [-40.0]])  # all equal as float32 probabilities
    assert average_precision(scores, torch.tensor([[0], [0], [1], [0]])).item() == 1


def test_integer_labels_match_float_labels() -> None:
    scores, truth = draw(0, 50, 4)
    assert torch.equal(average_precision(scores, truth), average_precision(scores, truth.to(torch.int8)))


def test_double_scores_are_not_rounded() -> None:
    scores = torch.tensor([[0.5], [0.5 + 1e-12]], dtype=torch.float64)
    assert average_precision(scores, torch.tensor([[0], [1]])).item() == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 5, 10**6]))
def test_order_of_photos_changes_nothing(seed: int, levels: int) -> None:
    scores, truth = draw(seed, 40, 3, levels)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        average_precision(scores[order], truth[order]),
        average_precision(scores, truth),
        rtol=0,
        atol=1e-14,
        equal_nan=True,
    )


def test_label_without_positive_is_left_out_and_counted() -> None:
    scores, truth = draw(0, 40, 5)
    truth[:, [1, 3]] = 0
    value, left_out = mean_average_precision(scores, truth)
    assert left_out == 2
    assert value == pytest.approx(100 * np.nanmean(reference(scores, truth)), abs=1e-10)
    assert average_precision(scores, truth).isnan().tolist() == [False, True, False, True, False]


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_torchmetrics_agrees_except_for_labels_without_positive() -> None:
    from torchmetrics.functional.classification import multilabel_average_precision

    scores, truth = draw(0, 40, 5)
    value, left_out = mean_average_precision(scores, truth)
    assert left_out == 0
    assert value == pytest.approx(100 * multilabel_average_precision(scores, truth.long(), 5).item(), abs=1e-4)
    truth[:, 1] = 0
    value, left_out = mean_average_precision(scores, truth)
    theirs = 100 * multilabel_average_precision(scores, truth.long(), 5).item()
    assert left_out == 1
    assert theirs == pytest.approx(value * 4 / 5, abs=1e-4)  # torchmetrics 1.9 scores such a label 0


def test_label_that_is_positive_on_every_photo_is_left_out_and_counted() -> None:
    scores, truth = draw(0, 40, 5)
    before, _ = mean_average_precision(scores[:, [0, 2, 3]], truth[:, [0, 2, 3]])
    truth[:, 1], truth[:, 4] = 1, 0
    value, left_out = mean_average_precision(scores, truth)
    assert left_out == 2
    assert value == pytest.approx(before, abs=1e-10)
    assert value == pytest.approx(100 * np.mean([reference(scores, truth)[k] for k in (0, 2, 3)]), abs=1e-10)
    assert average_precision(scores, truth)[1] == 1
    assert mean_average_precision(torch.rand(40, 5), truth)[1] == 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 6), st.floats(0, 1))
def test_map_is_the_mean_of_scikit_learn_over_the_labels_that_vary(seed: int, count: int, labels: int, share: float) -> None:
    scores, truth = draw(seed, count, labels, levels=5, share=share)
    counted = [k for k in range(labels) if 0 < truth[:, k].sum() < count]
    value, left_out = mean_average_precision(scores, truth)
    assert left_out == labels - len(counted)
    assert left_out == balanced_accuracy(scores, truth, "multi_label")[1]
    assert is_scorable(truth, Task("multi_label", tuple("abcdef"[:labels]))) is bool(counted)
    if counted:
        assert value == pytest.approx(100 * np.mean([reference(scores, truth)[k] for k in counted]), abs=1e-9)
    else:
        assert math.isnan(value)


def test_labels_that_do_not_vary_give_nan() -> None:
    for constant in (torch.zeros(4, 3), torch.ones(4, 3), torch.tensor([[1.0, 0.0, 1.0]]).expand(4, 3)):
        value, left_out = mean_average_precision(torch.rand(4, 3), constant)
        assert math.isnan(value)
        assert left_out == 3


def test_one_photo_has_no_map() -> None:
    assert math.isnan(mean_average_precision(torch.rand(1, 3), torch.tensor([[1.0, 0.0, 1.0]]))[0])


def test_classes_have_a_score_if_there_is_a_photo() -> None:
    task = Task("single_label", ("a", "b"))
    assert is_scorable(torch.tensor([1, 1]), task)
    assert not is_scorable(torch.tensor([], dtype=torch.int64), task)


def test_table_of_metrics_page_is_measured() -> None:
    from torchmetrics.functional.classification import multilabel_average_precision

    rng = torch.Generator().manual_seed(0)
    logits, rates = torch.randn(400, 40, generator=rng), torch.rand(40, generator=rng)
    truth = (torch.rand(400, 40, generator=rng) < rates).float()
    for count, constants, ours, theirs in ((400, (0, 0), 52.44, 52.44), (12, (5, 1), 64.28, 57.14)):
        scores, labels = logits[:count], truth[:count]
        assert (int((labels == 0).all(0).sum()), int((labels == 1).all(0).sum())) == constants
        assert mean_average_precision(scores, labels) == (pytest.approx(ours, abs=5e-3), sum(constants))
        with warnings.catch_warnings(action="ignore"):
            macro = 100 * average_precision_score(labels.numpy(), scores.numpy(), average="macro")
            assert macro == pytest.approx(theirs, abs=5e-3)
            assert 100 * multilabel_average_precision(scores, labels.long(), 40).item() == pytest.approx(theirs, abs=5e-3)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for number in ("52.44", "64.28", "57.14", "51.98"):
        assert number in page
    assert 100 * multilabel_average_precision(100 * logits, truth.long(), 40).item() == pytest.approx(51.98, abs=5e-3)


def test_no_photos_give_nan() -> None:
    assert average_precision(torch.zeros(0, 3), torch.zeros(0, 3)).isnan().all()
    assert mean_average_precision(torch.zeros(0, 3), torch.zeros(0, 3))[1] == 3
    assert math.isnan(accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))


def test_nan_scores_give_nan() -> None:
    scores, truth = draw(0, 40, 3)
    scores[7, 1] = math.nan
    assert average_precision(scores, truth).isnan().tolist() == [False, True, False]
    assert math.isnan(accuracy(torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.int64)))


def test_accuracy_is_the_share_of_correct_classes() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(scores, torch.tensor([1, 0, 0, 1])) == 50
    assert accuracy(scores, torch.tensor([1, 0, 1, 0])) == 100


def test_tug_of_war_of_the_oracle_is_100() -> None:
    scores = {"retain": 81.5, "forget": 60.25, "test": 59.0}
    assert tug_of_war(scores, scores) == 100


def test_tug_of_war_is_a_product_over_sets() -> None:
    oracle = {"retain": 80.0, "forget": 60.0, "test": 60.0}
    assert tug_of_war({"retain": 70.0, "forget": 80.0, "test": 55.0}, oracle) == pytest.approx(100 * 0.9 * 0.8 * 0.95)
    assert tug_of_war({"retain": 90.0, "forget": 40.0, "test": 65.0}, oracle) == pytest.approx(100 * 0.9 * 0.8 * 0.95)


@given(st.permutations([("retain", 70.0), ("forget", 81.0), ("test", 55.0)]))
def test_tug_of_war_does_not_depend_on_the_order_of_sets(pairs: list[tuple[str, float]]) -> None:
    oracle = {"test": 61.0, "retain": 83.0, "forget": 59.0}
    assert tug_of_war(dict(pairs), oracle) == pytest.approx(100 * 0.87 * 0.78 * 0.94)


def test_tug_of_war_of_a_nan_score_is_nan() -> None:
    assert math.isnan(tug_of_war({"a": math.nan, "b": 50.0}, {"a": 1.0, "b": 50.0}))


@pytest.mark.parametrize(("unlearned", "closed"), [(80.0, 0.0), (60.0, 1.0), (70.0, 0.5), (50.0, 1.5), (90.0, -0.5)])
def test_gap_closure_is_0_for_doing_nothing_and_1_for_the_oracle(unlearned: float, closed: float) -> None:
    assert gap_closure(80.0, unlearned, 60.0) == closed


def test_gap_closure_without_a_gap_is_nan() -> None:
    assert math.isnan(gap_closure(70.0, 60.0, 70.0))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 6), st.floats(0.02, 0.98))
def test_balanced_accuracy_of_attributes_matches_scikit_learn(seed: int, count: int, labels: int, share: float) -> None:
    scores, truth = draw(seed, count, labels, share=share)
    logits = scores - 0.5
    both = [k for k in range(labels) if 0 < truth[:, k].sum() < count]
    value, left_out = balanced_accuracy(logits, truth, "multi_label")
    assert left_out == labels - len(both)
    if both:
        theirs = [balanced_accuracy_score(truth[:, k].numpy(), (logits[:, k] > 0).numpy()) for k in both]
        assert value == pytest.approx(100 * np.mean(theirs), abs=1e-9)
    else:
        assert math.isnan(value)
    assert balanced_accuracy(logits, truth.int(), "multi_label") == (pytest.approx(value, nan_ok=True), left_out)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 6))
def test_balanced_accuracy_of_classes_matches_scikit_learn(seed: int, count: int, classes: int) -> None:
    logits, _ = draw(seed, count, classes)
    truth = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    value, left_out = balanced_accuracy(logits, truth, "single_label")
    assert value == pytest.approx(100 * balanced_accuracy_score(truth.numpy(), logits.argmax(1).numpy()), abs=1e-9)
    assert left_out == classes - len(truth.unique())


def test_predicting_the_most_frequent_value_is_chance_in_balanced_accuracy() -> None:
    truth = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    assert balanced_accuracy(torch.ones(4, 1), truth, "multi_label") == (50, 0)
    assert balanced_accuracy(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]), "single_label") == (50, 0)


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_balanced_accuracy_of_no_photos_or_nan_logits_is_nan(kind: TaskKind) -> None:
    scores, truth = draw(0, 40, 3)
    labels = truth if kind == "multi_label" else truth.argmax(1)
    assert math.isnan(balanced_accuracy(scores[:0], labels[:0], kind)[0])
    assert balanced_accuracy(scores[:0], labels[:0], kind)[1] == 3
    scores[7, 1] = math.nan
    assert math.isnan(balanced_accuracy(scores, labels, kind)[0])


def logits_of_two_models(seed: int, count: int, labels: int, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return size * torch.randn(count, labels, generator=rng), size * torch.randn(count, labels, generator=rng)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 10), st.integers(1, 6), st.floats(0.01, 10))
def test_jensen_shannon_matches_scipy_and_torch_distributions(seed: int, count: int, labels: int, size: float) -> None:
    first, second = logits_of_two_models(seed, count, labels, size)
    p, q = (x.double().softmax(1).numpy() for x in (first, second))
    single = jensen_shannon(first, second, "single_label")
    assert single == pytest.approx(np.nan_to_num(jensenshannon(p, q, axis=1) ** 2).mean(), abs=1e-9)
    own = [torch.distributions.Bernoulli(probs=x.double().sigmoid()) for x in (first, second)]
    middle = torch.distributions.Bernoulli(probs=(own[0].probs + own[1].probs) / 2)
    theirs = sum(torch.distributions.kl_divergence(d, middle) for d in own) / 2
    several = jensen_shannon(first, second, "multi_label")
    assert several == pytest.approx(theirs.mean().item(), abs=1e-7)
    for value, kind in ((single, "single_label"), (several, "multi_label")):
        assert 0 <= value <= math.log(2)
        assert jensen_shannon(second, first, kind) == pytest.approx(value, abs=1e-15)
        assert jensen_shannon(first, first, kind) < 1e-15


def test_divergence_of_opposite_predictions_is_log_2() -> None:
    sure = torch.tensor([[800.0, -800.0]])
    assert jensen_shannon(sure, -sure, "multi_label") == pytest.approx(math.log(2), abs=1e-15)
    assert jensen_shannon(sure, -sure, "single_label") == pytest.approx(math.log(2), abs=1e-15)


def test_divergence_of_nearly_equal_predictions_is_accurate() -> None:
    """For probabilities d apart the divergence is d squared / (8 p (1 - p)): 1e-12 here, which float32 cannot distinguish from 0."""
    shift = 8e-6
    found = jensen_shannon(torch.zeros(5, 1, dtype=torch.float64), torch.full((5, 1), shift, dtype=torch.float64), "multi_label")
    assert found == pytest.approx((shift / 4) ** 2 / 2, rel=1e-3)


def test_divergence_of_no_photos_or_nan_logits_is_nan() -> None:
    assert math.isnan(jensen_shannon(torch.zeros(0, 3), torch.zeros(0, 3), "multi_label"))
    assert math.isnan(jensen_shannon(torch.zeros(2, 3), torch.full((2, 3), math.nan), "single_label"))


def test_losses_are_averaged_per_person() -> None:
    identities = torch.tensor([9, 4, 9, 9, 4, 7])
    people, means = identity_losses(torch.tensor([1.0, 2.0, 3.0, 5.0, 4.0, 8.0]), identities)
    assert people.tolist() == [4, 7, 9]
    assert means.tolist() == [3, 8, 3]
    assert means.dtype == torch.float64


def test_largest_loss_gap_is_not_averaged_out() -> None:
    identities = torch.tensor([0, 0, 0, 0, 1, 2])
    oracle = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 3.0])
    gap = identity_loss_gap(oracle + torch.tensor([0.5, 1.5, 1.0, 1.0, -2.5, 1.5]), oracle, identities)
    assert gap.people.tolist() == [0, 1, 2]
    assert gap.gaps.tolist() == [1, -2.5, 1.5]
    assert gap.mean == 0  # over people, not over photos
    assert gap.largest == 2.5


def test_loss_gap_of_the_oracle_is_0_and_of_no_photos_is_nan() -> None:
    losses = torch.rand(10)
    assert identity_loss_gap(losses, losses, torch.arange(10) // 2).largest == 0
    empty = identity_loss_gap(losses[:0], losses[:0], torch.arange(0))
    assert math.isnan(empty.mean)
    assert math.isnan(empty.largest)
    assert math.isnan(identity_loss_gap(losses * math.nan, losses, torch.arange(10) // 2).largest)


def test_score_of_a_task_is_map_or_accuracy() -> None:
    scores, truth = draw(0, 40, 3)
    assert score(scores, truth, Task("multi_label", ("a", "b", "c"))) == mean_average_precision(scores, truth)[0]
    classes = truth.argmax(dim=1)
    assert score(scores, classes, Task("single_label", ("a", "b", "c"))) == accuracy(scores, classes)


def test_evaluate_module_matches_map_offline() -> None:
    from oneshui_hf.metrics.evaluate_modules import MeanAveragePrecision

    scores, truth = draw(0, 40, 4, levels=20)
    truth[:, 2], truth[:, 3] = 0, 1
    result = MeanAveragePrecision().compute(predictions=scores.tolist(), references=truth.int().tolist())
    value, left_out = mean_average_precision(scores, truth)
    assert result == {"map": pytest.approx(value, abs=1e-9), "labels_left_out": left_out}
    assert left_out == 2


def test_evaluate_module_matches_map_in_batches() -> None:
    from oneshui_hf.metrics.evaluate_modules import MeanAveragePrecision

    scores, truth = draw(0, 40, 4)
    metric = MeanAveragePrecision()
    for part in torch.arange(40).split(15):
        metric.add_batch(predictions=scores[part].tolist(), references=truth[part].int().tolist())
    assert metric.compute()["map"] == pytest.approx(mean_average_precision(scores, truth)[0], abs=1e-9)


def test_evaluate_modules_match_tug_of_war_and_gap_closure() -> None:
    from oneshui_hf.metrics.evaluate_modules import GapClosure, TugOfWar

    tow = TugOfWar().compute(predictions=[70.0, 80.0, 55.0], references=[80.0, 60.0, 60.0])
    assert tow == {"tow": pytest.approx(100 * 0.9 * 0.8 * 0.95)}
    closure = GapClosure().compute(predictions=[70.0, 60.0], references=[60.0, 60.0], original=[80.0, 80.0])
    assert closure == {"gap_closure": pytest.approx(0.75)}


def test_evaluate_module_matches_balanced_accuracy_of_both_kinds() -> None:
    from oneshui_hf.metrics.evaluate_modules import BalancedAccuracy

    scores, truth = draw(0, 40, 4)
    logits = scores - 0.5
    truth[:, 2] = 0
    for labels, kind in ((truth.int(), "multi_label"), (truth.argmax(1), "single_label")):
        value, left_out = balanced_accuracy(logits, labels, kind)
        found = BalancedAccuracy().compute(predictions=logits.tolist(), references=labels.tolist())
        assert found == {"balanced_accuracy": pytest.approx(value, abs=1e-9), "labels_left_out": left_out}


def test_evaluate_module_matches_jensen_shannon() -> None:
    from oneshui_hf.metrics.evaluate_modules import JensenShannon

    first, second = logits_of_two_models(0, 10, 4, 2.0)
    for kind, settings_ in (("multi_label", {}), ("single_label", {"kind": "single_label"})):
        found = JensenShannon().compute(predictions=first.tolist(), references=second.tolist(), **settings_)
        assert found == {"jensen_shannon": pytest.approx(jensen_shannon(first, second, kind), abs=1e-9)}


def test_evaluate_modules_match_identity_gap_and_auc() -> None:
    from oneshui_hf.metrics.evaluate_modules import AttackAUC, IdentityLossGap

    found = IdentityLossGap().compute(predictions=[1.0, 2.0, 6.0], references=[1.0, 1.0, 8.0], identities=[5, 5, 3])
    assert found == {"mean_gap": -0.75, "largest_gap": 2.0}
    assert AttackAUC().compute(predictions=[0.3, 0.1, 0.2, 0.3], references=[1, 0, 0, 0]) == {"auc": pytest.approx(2.5 / 3)}


def test_evaluate_modules_match_accuracy_and_loss() -> None:
    from oneshui_hf.metrics.evaluate_modules import Accuracy, Loss

    scores, truth = draw(0, 40, 4)
    classes = truth.argmax(1)
    assert Accuracy().compute(predictions=scores.tolist(), references=classes.tolist()) == {"accuracy": accuracy(scores, classes)}
    binary = torch.nn.functional.binary_cross_entropy_with_logits(scores, truth).item()
    assert Loss().compute(predictions=scores.tolist(), references=truth.int().tolist())["loss"] == pytest.approx(binary, rel=1e-5)
    entropy = torch.nn.functional.cross_entropy(scores, classes).item()
    assert Loss().compute(predictions=scores.tolist(), references=classes.tolist())["loss"] == pytest.approx(entropy, rel=1e-5)


def test_evaluate_module_matches_rmia() -> None:
    from oneshui_hf.metrics.attack_signals import Signals, label_log_probabilities
    from oneshui_hf.metrics.attacks import rmia
    from oneshui_hf.metrics.evaluate_modules import RMIA
    from oneshui_hf.seeding import generator

    scores, truth = draw(0, 60, 4)
    target, other = 4 * (scores - 0.5), 4 * (draw(1, 60, 4)[0] - 0.5)
    roles = ["member"] * 20 + ["nonmember"] * 25 + ["population"] * 15
    people = torch.arange(60) // 4
    found = RMIA().compute(
        predictions=target.tolist(), references=truth.int().tolist(), roles=roles, identities=people.tolist(), others=[other.tolist()]
    )
    signals = [label_log_probabilities(logits, truth, "multi_label") for logits in (target, other)]
    groups = [Signals(signals[0][part], signals[1][part].unsqueeze(0)) for part in torch.arange(60).split([20, 25, 15])]
    direct = rmia(*groups, (people[:20], people[20:45]), generator(0, "attack", "rmia"))
    assert found["auc"] == pytest.approx(direct.auc, abs=1e-9)
    assert found["auc_either_way"] == pytest.approx(direct.auc_best_direction, abs=1e-9)
    assert found["smallest_fpr"] == 1 / 25
