"""Relearning time: after how many training steps on the forget set a model reaches the original's loss on it again.

A model that only hides information relearns within a few steps; one that never had it has to learn. Fewer steps than the oracle's mean
that information remains. As many or more do not mean that none remains: a model that was moved far away, to a high loss, takes long to
return in any case. A number without the oracle's is hard to interpret, since the identities may be easy to learn.

Sources: "relearn time" in Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks",
CVPR 2020; Tarun, Chundawat, Mandal, Kankanhalli, "Fast Yet Effective Machine Unlearning", 2021. They count epochs; a forget set of few
photos has few steps an epoch, so steps are counted here.
"""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from torch import nn

from ...data.face_set import FaceSet
from ...data.schema import Task
from ...errors import UsageError
from ...models.outputs import losses
from ...seeding import generator, seeded
from ..training.steps import use_running_statistics

# The original's loss is the end of a long training at a falling rate; its last tenth reflects that rate more than memorisation.
TOLERANCE = 1.1
DENSE_STEPS = 10  # the loss is measured after each of the first steps; a model that hides information relearns within them
SPARSE_INTERVAL = 5  # later it is measured every few steps, because a measurement costs as much as a pass over the forget set


def relearning_steps(
    model: nn.Module,
    forget: FaceSet,
    target_loss: float,
    task: Task,
    accelerator: Accelerator,
    *,
    at_most: int,
    lr: float = 1e-4,
    batch_size: int = 32,
    seed: int,
) -> int | None:
    """Return after how many training steps on the forget set a copy of the model is back at the original's loss.

    The attacker has the photos of the forget set, without augmentation, and trains all parameters on nothing else: AdamW without weight
    decay, at a constant rate. The model is back when its mean loss over the whole forget set, in eval mode, is at most `TOLERANCE`
    times `target_loss`. The loss is measured after each of the first 10 steps and then after every fifth, so a result beyond 10 is a
    multiple of 5, and steps of `at_most` beyond the last multiple are not run.

    Every process does all the work on its own copy, so the result does not depend on the number of processes. The given model and
    torch's global random state do not change.

    Args:
        model: Any image classifier, on the accelerator's device.
        forget: The forget set.
        target_loss: The original model's mean loss on it, in eval mode.
        task: For the loss.
        accelerator: For the device.
        at_most: Maximum number of steps.
        lr: The learning rate.
        batch_size: Photos per step; the last step of a pass over the forget set may have fewer.
        seed: Seed of the order of the photos and of dropout.

    Returns:
        The number of steps; 0 if the model is back without training, None if it is not back within `at_most`.

    Raises:
        UsageError: The forget set is empty.
    """
    if not len(forget):
        raise UsageError("The forget set contains no photos, so relearning cannot be measured; leave --relearn-steps out.")
    student = copy.deepcopy(accelerator.unwrap_model(model)).requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)

    def is_back() -> bool:
        return _mean_loss(student, forget, task, accelerator.device, batch_size) <= TOLERANCE * target_loss

    if is_back():
        return 0
    step = epoch = 0
    last = at_most if at_most <= DENSE_STEPS else at_most - at_most % SPARSE_INTERVAL
    while step < last:
        order = torch.randperm(len(forget), generator=generator(seed, "relearn", epoch))
        with seeded(seed, "relearn", "dropout", epoch):
            for positions in order.split(batch_size)[: last - step]:
                pixels, labels = forget.batch(positions, accelerator.device)
                student.train()
                if len(positions) == 1:
                    use_running_statistics(student)
                losses(student(pixel_values=pixels).logits.float(), labels, task.kind).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if (step <= DENSE_STEPS or step % SPARSE_INTERVAL == 0) and is_back():
                    return step
        epoch += 1
    return None


def _mean_loss(model: nn.Module, faces: FaceSet, task: Task, device: torch.device, batch_size: int) -> float:
    """Return the mean loss over all photos, accumulated in double precision."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for positions in torch.arange(len(faces)).split(batch_size):
            pixels, labels = faces.batch(positions, device)
            total += losses(model(pixel_values=pixels).logits.float(), labels, task.kind).double().sum().item()
    return total / len(faces)
