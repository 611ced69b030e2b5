"""The coordinates of keys: covariances against one photo at a time, the Fisher information by enumeration, and the chain rule."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch

from oneshui_hf.methods import predict, sample
from oneshui_hf.seeding import generator
from oneshui_hf.testing.toy_problem import World, world
from oneshui_plugins.common.input_covariance import covariances
from oneshui_plugins.common.kl import divergence
from oneshui_plugins.forget_keys.low_rank import Factors, keyed
from oneshui_plugins.forget_keys.preconditioner import LOOKED_AT, Coordinates, coordinates, gradients, inverse_root, surprise
from support.key_training import lessons

KINDS = ("multi_label", "single_label")
NAME = "vit.layers.0.mlp.fc1.weight"


def found(w: World, **options: object) -> Coordinates:
    model = copy.deepcopy(w.model).requires_grad_(False)
    return coordinates(model, keyed(model, 1.0), lessons(w, **options), w.context())


def test_inputs_have_the_same_energy_in_every_direction() -> None:
    w = world("multi_label")
    model = copy.deepcopy(w.model)
    seen = []
    hook = keyed(model, 1.0)[NAME][0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        photos, _ = w.sets["train"].batch(torch.arange(len(w.sets["train"])))
        model(pixel_values=torch.cat([photos, photos.flip(-1)]))
    hook.remove()
    energies = [torch.linalg.eigvalsh(x.mT @ x) for x in (seen[0], seen[0] @ found(w, damping=1e-4).down[NAME])]
    assert energies[0].max() / energies[0].median() > 20
    assert energies[1].max() / energies[1].median() < 1.2


def test_a_weight_that_no_photo_reaches_is_left_as_it_is() -> None:
    w = world("multi_label")
    model = copy.deepcopy(w.model)
    model.spare = torch.nn.Linear(3, 2)
    space = found(dataclasses.replace(w, model=model))
    others = found(w)
    assert torch.equal(space.down["spare.weight"], torch.eye(3))
    assert torch.equal(space.up["spare.weight"] / space.up["spare.weight"][0, 0], torch.eye(2))
    torch.testing.assert_close(space.down[NAME], others.down[NAME])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [3, 64])
def test_gradients_are_those_of_each_photo_by_itself(kind: str, chunk: int) -> None:
    w = world(kind)
    model = copy.deepcopy(w.model).requires_grad_(False)
    layers, context, train = keyed(model, 1.0), w.context(), w.sets["train"]
    got = gradients(model, layers, 8, lambda rows: train.batch(rows)[0], chunk, context)
    draws = generator(context.seed, "curvature")
    noise = torch.randint(2, (8, len(w.task.label_names)), generator=draws) * 2.0 - 1
    for name in (NAME, "classifier.weight", "vit.embeddings.patch_embeddings.projection.weight"):
        total = torch.zeros_like(got[name])
        for photo in range(8):
            added: list[torch.Tensor] = []

            def add(module: torch.nn.Module, inputs: object, said: torch.Tensor, added: list[torch.Tensor] = added) -> torch.Tensor:
                added.append(torch.zeros_like(said).requires_grad_())
                return said + added[0]

            hook = layers[name][0].register_forward_hook(add)
            logits = model(pixel_values=train.batch(torch.tensor([photo]))[0]).logits
            hook.remove()
            (g,) = torch.autograd.grad((logits * surprise(logits.detach(), noise[photo : photo + 1], kind)).sum(), added)  # type: ignore[arg-type]
            rows = (g.flatten(2).mT if g.dim() == 4 else g).reshape(-1, len(total)).double()
            total += rows.mT @ rows
        torch.testing.assert_close(got[name], total / 8, rtol=1e-4, atol=1e-6 * float(total.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_has_the_covariance_of_drawn_labels_and_so_the_fisher_information(kind: str) -> None:
    logits = torch.tensor([[1.5, -0.5, 0.25]], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    each = surprise(logits.expand(len(signs), 3), signs, kind)  # type: ignore[arg-type]
    assert torch.allclose(each.mean(dim=0), torch.zeros(3, dtype=torch.float64))
    hessian = torch.autograd.functional.hessian(lambda z: divergence(logits, z.unsqueeze(0), kind).sum(), logits[0])  # type: ignore[arg-type]
    scale = 3 if kind == "multi_label" else 1  # the divergence is a mean over attributes
    torch.testing.assert_close(each.mT @ each / len(signs), scale * hessian)


def test_an_inverse_root_undoes_a_matrix() -> None:
    half = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = half @ half.mT
    root = inverse_root(matrix, 0.5).double()
    damped = matrix + 0.5 * matrix.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    undone = root @ damped @ root
    torch.testing.assert_close(undone, undone[0, 0] * torch.eye(6, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert float(torch.linalg.eigvalsh(root).mean()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(inverse_root(matrix, 1e5), torch.eye(6), atol=1e-3, rtol=0)
    assert torch.equal(inverse_root(torch.zeros(3, 3, dtype=torch.float64), 0.1), torch.eye(3))


def test_gradients_are_as_large_as_without_coordinates_on_average_over_the_layers() -> None:
    w = world("multi_label")
    space, context, train = found(w, damping=0.03), w.context(), w.sets["train"]
    model = copy.deepcopy(w.model).requires_grad_(False)
    layers = keyed(model, 1.0)
    rows = sample(len(train), LOOKED_AT, generator(context.seed, "coordinates"))
    photos, _ = train.batch(rows)
    photos = torch.cat([photos, photos.flip(-1)])
    heard = gradients(model, layers, len(photos), lambda some: photos[some], 64, context)
    given = covariances(model, len(photos), lambda some: photos[some], 64, context)
    logs = []
    for name in layers:
        b, a = heard[name], given[name].matrix[0]
        if b.any():
            up, down = space.up[name].double(), space.down[name].double()
            logs.append(0.5 * math.log((up @ b @ up).trace() / b.trace() * (down @ a @ down).trace() / a.trace()))
            assert float(torch.linalg.eigvalsh(down).mean()) == pytest.approx(1, rel=1e-4)
        else:
            logs.append(math.log(float(space.up[name][0, 0])))
    assert sum(logs) / len(logs) == pytest.approx(0, abs=1e-4)


def test_others_notice_every_direction_alike() -> None:
    w = world("multi_label")
    space, model = found(w, damping=1e-2), copy.deepcopy(w.model)
    weight = dict(model.named_parameters())[NAME]
    pixels, _ = w.sets["train"].batch(torch.arange(len(w.sets["train"])))
    before = predict(w.model, w.sets["train"], w.context().accelerator)

    def noticed(change: torch.Tensor) -> float:
        size = 1e-2 / float(change.norm())
        with torch.no_grad():
            weight.add_(size * change)
            after = model(pixel_values=pixels).logits
            weight.sub_(size * change)
        return float(divergence(before.double(), after.double(), "multi_label").mean()) / size**2

    says, listens = (torch.linalg.eigh(side[NAME]).eigenvectors for side in (space.up, space.down))
    changes = [torch.outer(says[:, i], listens[:, j]) for i in (0, len(says) // 2) for j in (0, len(listens) // 2)]  # the loudest first
    plain = [noticed(change) for change in changes]
    white = [noticed(space.up[NAME] @ change @ space.down[NAME]) for change in changes]
    assert max(plain) / min(plain) > 100
    assert max(white) / min(white) < 10


def test_learning_in_these_coordinates_is_the_chain_rule() -> None:
    draws = torch.Generator().manual_seed(0)
    halves = torch.randn(3, 3, generator=draws), torch.randn(4, 4, generator=draws)
    space = Coordinates({"w": halves[0] + halves[0].mT}, {"w": halves[1] + halves[1].mT})
    raw = Factors(torch.randn(1, 3, 2, generator=draws).requires_grad_(), torch.randn(1, 2, 4, generator=draws).requires_grad_())
    keys = space.through({"w": raw})
    keys["w"].up.retain_grad()
    keys["w"].down.retain_grad()
    keys["w"].added().square().sum().backward()
    by_hand = space.through({"w": Factors(keys["w"].up.grad, keys["w"].down.grad)})  # type: ignore[arg-type]
    torch.testing.assert_close(raw.up.grad, by_hand["w"].up)
    torch.testing.assert_close(raw.down.grad, by_hand["w"].down)
