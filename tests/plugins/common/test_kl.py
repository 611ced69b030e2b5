"""The divergences against torch.distributions, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from oneshui_plugins.common.kl import divergence

draws = torch.Generator().manual_seed(0)
TEACHER, STUDENT = (3 * torch.randn(6, 5, generator=draws, dtype=torch.float64) for _ in range(2))


def softmax_over_attributes(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The wrong version for multi-label tasks: attributes compete as if they were classes."""
    return temperature**2 * kl_divergence(Categorical(logits=teacher / temperature), Categorical(logits=student / temperature))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes_are_one_distribution(temperature: float) -> None:
    expected = kl_divergence(Categorical(logits=TEACHER / temperature), Categorical(logits=STUDENT / temperature))
    ours = divergence(TEACHER, STUDENT, "single_label", temperature)
    torch.testing.assert_close(ours, temperature**2 * expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_attributes_are_a_distribution_each(temperature: float) -> None:
    expected = kl_divergence(Bernoulli(logits=TEACHER / temperature), Bernoulli(logits=STUDENT / temperature))
    ours = divergence(TEACHER, STUDENT, "multi_label", temperature)
    torch.testing.assert_close(ours, temperature**2 * expected.mean(dim=1), rtol=1e-12, atol=0)


def test_a_softmax_over_attributes_is_something_else() -> None:
    ours, wrong = divergence(TEACHER, STUDENT, "multi_label"), softmax_over_attributes(TEACHER, STUDENT)
    assert ((ours - wrong).abs() > 0.01 * ours).all()
    # It does not see a student that says yes to everything.
    yes = TEACHER + 10
    assert softmax_over_attributes(TEACHER, yes) == pytest.approx(0, abs=1e-12)
    assert (divergence(TEACHER, yes, "multi_label") > 1).all()


def test_an_attribute_is_a_task_of_two_classes() -> None:
    one_teacher, one_student = TEACHER[:, :1], STUDENT[:, :1]
    two = [torch.cat([logit, torch.zeros_like(logit)], dim=1) for logit in (one_teacher, one_student)]
    torch.testing.assert_close(divergence(one_teacher, one_student, "multi_label", 4.0), divergence(*two, "single_label", 4.0))


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_a_student_that_says_the_same_is_at_the_minimum(kind: str) -> None:
    student = TEACHER.clone().requires_grad_()
    apart = divergence(TEACHER, student, kind, 2.0)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(apart.sum(), student)
    assert torch.equal(apart, torch.zeros(6, dtype=torch.float64))
    assert slope.abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_extreme_logits_stay_finite(kind: str) -> None:
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    apart = divergence(torch.tensor([[1e4, -1e4, 0.0]]), student, kind)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(apart.sum(), student)
    assert torch.isfinite(apart).all()
    assert torch.isfinite(slope).all()
