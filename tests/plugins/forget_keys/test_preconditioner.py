"""The preconditioner: covariances against one photo at a time, the Fisher information by enumeration, and the chain rule."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch

from oneshui_hf.methods import predict, sample
from oneshui_hf.seeding import generator
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.common.input_covariance import input_covariances
from oneshui_plugins.common.kl import kl_divergence
from oneshui_plugins.forget_keys.low_rank import LowRankUpdate, target_layers
from oneshui_plugins.forget_keys.preconditioner import (
    MAX_PHOTOS,
    Preconditioner,
    estimate_preconditioner,
    fisher_noise,
    gradient_covariances,
    inverse_root,
)
from support.architectures import classifier
from support.key_training import make_training_data

KINDS = ("multi_label", "single_label")
NAME = "vit.layers.0.mlp.fc1.weight"


def estimated(problem: ToyProblem, **options: object) -> Preconditioner:
    model = copy.deepcopy(problem.model).requires_grad_(False)
    return estimate_preconditioner(model, target_layers(model, 1.0), make_training_data(problem, **options), problem.context())


def test_whitened_inputs_have_equal_energy_in_every_direction() -> None:
    problem = toy_problem("multi_label")
    model = copy.deepcopy(problem.model)
    seen = []
    hook = target_layers(model, 1.0)[NAME][0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        photos, _ = problem.sets["train"].batch(torch.arange(len(problem.sets["train"])))
        model(pixel_values=torch.cat([photos, photos.flip(-1)]))
    hook.remove()
    energies = [torch.linalg.eigvalsh(x.mT @ x) for x in (seen[0], seen[0] @ estimated(problem, damping=1e-4).down[NAME])]
    assert energies[0].max() / energies[0].median() > 20
    assert energies[1].max() / energies[1].median() < 1.2


def test_weight_that_no_photo_reaches_is_not_preconditioned() -> None:
    problem = toy_problem("multi_label")
    model = copy.deepcopy(problem.model)
    model.spare = torch.nn.Linear(3, 2)
    preconditioner = estimated(dataclasses.replace(problem, model=model))
    without_spare = estimated(problem)
    assert torch.equal(preconditioner.down["spare.weight"], torch.eye(3))
    assert torch.equal(preconditioner.up["spare.weight"] / preconditioner.up["spare.weight"][0, 0], torch.eye(2))
    torch.testing.assert_close(preconditioner.down[NAME], without_spare.down[NAME])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [3, 64])
def test_gradient_covariances_are_those_of_each_photo_by_itself(kind: str, chunk: int) -> None:
    problem = toy_problem(kind)
    model = copy.deepcopy(problem.model).requires_grad_(False)
    layers, context, train = target_layers(model, 1.0), problem.context(), problem.sets["train"]
    found = gradient_covariances(model, layers, 8, lambda rows: train.batch(rows)[0], chunk, context)
    rng = generator(context.seed, "curvature")
    signs = torch.randint(2, (8, len(problem.task.label_names)), generator=rng) * 2.0 - 1
    for name in (NAME, "classifier.weight", "vit.embeddings.patch_embeddings.projection.weight"):
        total = torch.zeros_like(found[name])
        for photo in range(8):
            offsets: list[torch.Tensor] = []

            def add(module: torch.nn.Module, inputs: object, output: torch.Tensor, offsets: list[torch.Tensor] = offsets) -> torch.Tensor:
                offsets.append(torch.zeros_like(output).requires_grad_())
                return output + offsets[0]

            hook = layers[name][0].register_forward_hook(add)
            logits = model(pixel_values=train.batch(torch.tensor([photo]))[0]).logits
            hook.remove()
            (g,) = torch.autograd.grad((logits * fisher_noise(logits.detach(), signs[photo : photo + 1], kind)).sum(), offsets)  # type: ignore[arg-type]
            rows = (g.flatten(2).mT if g.dim() == 4 else g).reshape(-1, len(total)).double()
            total += rows.mT @ rows
        torch.testing.assert_close(found[name], total / 8, rtol=1e-4, atol=1e-6 * float(total.abs().max()))


def test_gradient_covariance_of_a_linear_layer_on_maps_is_over_its_own_outputs() -> None:
    problem = toy_problem("multi_label")
    model = classifier("convnext", "multi_label", labels=4).requires_grad_(False)
    name, users = next((name, users) for name, users in target_layers(model, 1.0).items() if "pwconv1" in name)
    photos, context = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), problem.context()
    offsets: list[torch.Tensor] = []

    def add(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        offsets.append(torch.zeros_like(output).requires_grad_())
        return output + offsets[-1]

    found = gradient_covariances(model, {name: users}, 2, lambda rows: photos[rows], 64, context)[name]
    hook = users[0].register_forward_hook(add)
    logits = model(pixel_values=photos).logits
    hook.remove()
    signs = torch.randint(2, (2, 4), generator=generator(context.seed, "curvature")) * 2.0 - 1
    (g,) = torch.autograd.grad((logits * fisher_noise(logits.detach(), signs, "multi_label")).sum(), offsets)
    assert g.dim() == 4
    rows = g.flatten(0, 2).double()
    torch.testing.assert_close(found, rows.mT @ rows / 2, rtol=1e-4, atol=1e-6 * float(found.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_noise_has_the_covariance_of_sampled_labels_and_so_the_fisher_information(kind: str) -> None:
    logits = torch.tensor([[1.5, -0.5, 0.25]], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    each = fisher_noise(logits.expand(len(signs), 3), signs, kind)  # type: ignore[arg-type]
    assert torch.allclose(each.mean(dim=0), torch.zeros(3, dtype=torch.float64))
    hessian = torch.autograd.functional.hessian(lambda z: kl_divergence(logits, z.unsqueeze(0), kind).sum(), logits[0])  # type: ignore[arg-type]
    scale = 3 if kind == "multi_label" else 1  # the divergence is a mean over attributes
    torch.testing.assert_close(each.mT @ each / len(signs), scale * hessian)


def test_inverse_root_inverts_the_damped_matrix() -> None:
    half = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = half @ half.mT
    root = inverse_root(matrix, 0.5).double()
    damped = matrix + 0.5 * matrix.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    product = root @ damped @ root
    torch.testing.assert_close(product, product[0, 0] * torch.eye(6, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert float(torch.linalg.eigvalsh(root).mean()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(inverse_root(matrix, 1e5), torch.eye(6), atol=1e-3, rtol=0)
    assert torch.equal(inverse_root(torch.zeros(3, 3, dtype=torch.float64), 0.1), torch.eye(3))


def test_gradients_keep_their_norm_on_average_over_the_layers() -> None:
    problem = toy_problem("multi_label")
    preconditioner, context, train = estimated(problem, damping=0.03), problem.context(), problem.sets["train"]
    model = copy.deepcopy(problem.model).requires_grad_(False)
    layers = target_layers(model, 1.0)
    rows = sample(len(train), MAX_PHOTOS, generator(context.seed, "coordinates"))
    photos, _ = train.batch(rows)
    photos = torch.cat([photos, photos.flip(-1)])
    outputs = gradient_covariances(model, layers, len(photos), lambda some: photos[some], 64, context)
    inputs = input_covariances(model, len(photos), lambda some: photos[some], 64, context)
    logs = []
    for name in layers:
        b, a = outputs[name], inputs[name].matrix[0]
        if b.any():
            up, down = preconditioner.up[name].double(), preconditioner.down[name].double()
            logs.append(0.5 * math.log((up @ b @ up).trace() / b.trace() * (down @ a @ down).trace() / a.trace()))
            assert float(torch.linalg.eigvalsh(down).mean()) == pytest.approx(1, rel=1e-4)
        else:
            logs.append(math.log(float(preconditioner.up[name][0, 0])))
    assert sum(logs) / len(logs) == pytest.approx(0, abs=1e-4)


def test_preconditioned_updates_cost_other_identities_about_the_same_in_every_direction() -> None:
    problem = toy_problem("multi_label")
    preconditioner, model = estimated(problem, damping=1e-2), copy.deepcopy(problem.model)
    weight = dict(model.named_parameters())[NAME]
    pixels, _ = problem.sets["train"].batch(torch.arange(len(problem.sets["train"])))
    before = predict(problem.model, problem.sets["train"], problem.context().accelerator)

    def cost(change: torch.Tensor) -> float:
        size = 1e-2 / float(change.norm())
        with torch.no_grad():
            weight.add_(size * change)
            after = model(pixel_values=pixels).logits
            weight.sub_(size * change)
        return float(kl_divergence(before.double(), after.double(), "multi_label").mean()) / size**2

    outputs, inputs = (torch.linalg.eigh(side[NAME]).eigenvectors for side in (preconditioner.up, preconditioner.down))
    places = ((i, j) for i in (0, len(outputs) // 2) for j in (0, len(inputs) // 2))  # the directions of largest energy first
    changes = [torch.outer(outputs[:, i], inputs[:, j]) for i, j in places]
    plain = [cost(change) for change in changes]
    white = [cost(preconditioner.up[NAME] @ change @ preconditioner.down[NAME]) for change in changes]
    assert max(plain) / min(plain) > 100
    assert max(white) / min(white) < 10


def test_preconditioned_gradient_follows_the_chain_rule() -> None:
    rng = torch.Generator().manual_seed(0)
    halves = torch.randn(3, 3, generator=rng), torch.randn(4, 4, generator=rng)
    preconditioner = Preconditioner({"w": halves[0] + halves[0].mT}, {"w": halves[1] + halves[1].mT})
    raw = LowRankUpdate(torch.randn(1, 3, 2, generator=rng).requires_grad_(), torch.randn(1, 2, 4, generator=rng).requires_grad_())
    updates = preconditioner.apply({"w": raw})
    updates["w"].up.retain_grad()
    updates["w"].down.retain_grad()
    updates["w"].delta_weight().square().sum().backward()
    by_hand = preconditioner.apply({"w": LowRankUpdate(updates["w"].up.grad, updates["w"].down.grad)})  # type: ignore[arg-type]
    torch.testing.assert_close(raw.up.grad, by_hand["w"].up)
    torch.testing.assert_close(raw.down.grad, by_hand["w"].down)
