"""Relearning speed: how soon a model knows the forget set again, once it is trained on it anew.

A model that only hides what it knows is back within a few steps; one that never knew has to learn. Fewer steps than the oracle needs
mean that knowledge is left. As many or more do not mean that none is: a model that was pushed far away, to a high loss, takes long to
come back whatever it knows. A number without the oracle's says little, since people may be easy to learn.

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

# The original's loss is the end of a long training at a falling rate; its last tenth says more about that rate than about memory.
TOLERANCE = 1.1
CLOSELY = 10  # steps after each of which the loss is looked at; a model that hides what it knows is back within them
EVERY = 5  # steps between two looks from there on, since a look costs as much as a pass over the forget set


def relearning(
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
    """Return after how many steps of training on the forget set a copy of the model is back at the original's loss.

    The attacker has the photos of the forget set again, as they are, and trains all parameters on nothing else: AdamW without weight
    decay, at one rate. Back means that the mean loss over the whole forget set, in eval mode, is at most `TOLERANCE` times
    `target_loss`. It is looked at after each of the first 10 steps and after every fifth from there on, so an answer beyond 10 is a
    multiple of 5, and steps of `at_most` beyond the last multiple are not tried.

    Every process does the whole work on a copy of its own, so the answer does not depend on how many there are. The model that is
    handed in, and torch's global random state, are as they were.

    Args:
        model: Any image classifier, on the accelerator's device.
        forget: The photos to forget.
        target_loss: The original model's mean loss on them, in eval mode.
        task: For the loss.
        accelerator: For the device.
        at_most: Most steps that are tried.
        lr: The learning rate.
        batch_size: Photos a step; the last one of a pass over the forget set has fewer.
        seed: Of the order of the photos and of dropout.

    Returns:
        The steps; 0 where the model is back without any, None where it is not back within `at_most`.

    Raises:
        UsageError: There are no photos to forget.
    """
    if not len(forget):
        raise UsageError("The forget set holds no photos, so relearning them cannot be timed; leave --relearn-steps out.")
    student = copy.deepcopy(accelerator.unwrap_model(model)).requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)

    def is_back() -> bool:
        return _mean_loss(student, forget, task, accelerator.device, batch_size) <= TOLERANCE * target_loss

    if is_back():
        return 0
    step = epoch = 0
    last = at_most if at_most <= CLOSELY else at_most - at_most % EVERY
    while step < last:
        order = torch.randperm(len(forget), generator=generator(seed, "relearn", epoch))
        with seeded(seed, "relearn", "dropout", epoch):
            for positions in order.split(batch_size)[: last - step]:
                pixels, labels = forget.batch(positions, accelerator.device)
                student.train()
                losses(student(pixel_values=pixels).logits.float(), labels, task.kind).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if (step <= CLOSELY or step % EVERY == 0) and is_back():
                    return step
        epoch += 1
    return None


def _mean_loss(model: nn.Module, faces: FaceSet, task: Task, device: torch.device, batch_size: int) -> float:
    """Return the mean loss over all photos, summed in double precision."""
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for positions in torch.arange(len(faces)).split(batch_size):
            pixels, labels = faces.batch(positions, device)
            total += losses(model(pixel_values=pixels).logits.float(), labels, task.kind).double().sum().item()
    return total / len(faces)
