"""The KL divergence against torch.distributions, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Categorical
from torch.distributions import kl_divergence as torch_kl_divergence

from oneshui_plugins.common.kl import kl_divergence

rng = torch.Generator().manual_seed(0)
TEACHER, STUDENT = (3 * torch.randn(6, 5, generator=rng, dtype=torch.float64) for _ in range(2))


def softmax_over_attributes(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The wrong formula for multi-label tasks: attributes compete as if they were classes."""
    return temperature**2 * torch_kl_divergence(Categorical(logits=teacher / temperature), Categorical(logits=student / temperature))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_single_label_is_the_kl_of_one_categorical_distribution(temperature: float) -> None:
    expected = torch_kl_divergence(Categorical(logits=TEACHER / temperature), Categorical(logits=STUDENT / temperature))
    ours = kl_divergence(TEACHER, STUDENT, "single_label", temperature)
    torch.testing.assert_close(ours, temperature**2 * expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_multi_label_is_the_mean_kl_of_bernoulli_distributions(temperature: float) -> None:
    expected = torch_kl_divergence(Bernoulli(logits=TEACHER / temperature), Bernoulli(logits=STUDENT / temperature))
    ours = kl_divergence(TEACHER, STUDENT, "multi_label", temperature)
    torch.testing.assert_close(ours, temperature**2 * expected.mean(dim=1), rtol=1e-12, atol=0)


def test_multi_label_differs_from_a_softmax_over_attributes() -> None:
    ours, wrong = kl_divergence(TEACHER, STUDENT, "multi_label"), softmax_over_attributes(TEACHER, STUDENT)
    assert ((ours - wrong).abs() > 0.01 * ours).all()
    # The softmax does not change when a student raises all logits equally.
    raised = TEACHER + 10
    assert softmax_over_attributes(TEACHER, raised) == pytest.approx(0, abs=1e-12)
    assert (kl_divergence(TEACHER, raised, "multi_label") > 1).all()


def test_one_attribute_equals_a_task_of_two_classes() -> None:
    one_teacher, one_student = TEACHER[:, :1], STUDENT[:, :1]
    two = [torch.cat([logit, torch.zeros_like(logit)], dim=1) for logit in (one_teacher, one_student)]
    torch.testing.assert_close(kl_divergence(one_teacher, one_student, "multi_label", 4.0), kl_divergence(*two, "single_label", 4.0))


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_equal_logits_are_at_the_minimum(kind: str) -> None:
    student = TEACHER.clone().requires_grad_()
    divergence = kl_divergence(TEACHER, student, kind, 2.0)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert torch.equal(divergence, torch.zeros(6, dtype=torch.float64))
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_extreme_logits_stay_finite(kind: str) -> None:
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    divergence = kl_divergence(torch.tensor([[1e4, -1e4, 0.0]]), student, kind)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert torch.isfinite(divergence).all()
    assert torch.isfinite(gradient).all()
