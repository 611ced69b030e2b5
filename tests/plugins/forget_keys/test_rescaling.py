"""How long keys are: so long that their people lose what they are to lose, checked with the keys added to the weights."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from oneshui_hf.methods import losses
from oneshui_hf.testing.toy_problem import World, world
from oneshui_plugins.forget_keys import training as learning
from oneshui_plugins.forget_keys.batches import Lessons
from oneshui_plugins.forget_keys.low_rank import Factors, Keys, keyed, opened, scaled, some_of
from oneshui_plugins.forget_keys.method import matrices
from oneshui_plugins.forget_keys.quantization import decode
from oneshui_plugins.forget_keys.rescaling import LONGEST, ROUNDS, SHORTEST, lengths
from oneshui_plugins.forget_keys.training import learn
from support.key_training import KINDS, drawn, learner, lessons


def asking(made: Lessons) -> list[int]:
    return sorted(made.train.positions_of)


def own_loss(w: World, made: Lessons, keys: Keys, person: int) -> float:
    own = dataclasses.replace(w, sets={"own": made.train.subset(made.train.positions_of[person])})
    return own.loss(opened(w.model, [keys], 1.0), "own")


def wanted(w: World, made: Lessons) -> dict[int, float]:
    """Each person's mean loss of the strangers' answers at the same rank among all training photos, photo by photo."""
    positions = torch.cat([made.train.positions_of[person] for person in asking(made)])
    told = made.targets(positions, made.known[0].logits[positions], torch.zeros(len(positions), dtype=torch.bool)).double()
    labels = made.train.labels[positions]
    if w.task.kind == "multi_label":
        each = torch.where(labels > 0, -told.sigmoid().log(), -(1 - told.sigmoid()).log()).mean(dim=1)
    else:
        each = torch.stack([-row.softmax(dim=0)[label].log() for row, label in zip(told, labels, strict=True)])
    owner = made.train.identities[positions]
    return {person: float(each[owner == person].mean()) for person in asking(made)}


def uphill(w: World, made: Lessons, length: float) -> Keys:
    """Keys of everybody up the gradient of their own loss, in the two directions that matter most."""
    each = []
    for person in asking(made):
        free = copy.deepcopy(w.model).requires_grad_(True)
        pixels, labels = made.train.batch(made.train.positions_of[person])
        losses(free(pixel_values=pixels).logits, labels, w.task.kind).mean().backward()
        gradients = {name: weight.grad.flatten(1) for name, weight in free.named_parameters() if name in keyed(w.model, 1.0)}
        size = sum(g.square().sum() for g in gradients.values()).sqrt()
        each.append({name: torch.linalg.svd(length * g / size, full_matrices=False) for name, g in gradients.items()})
    return {
        name: Factors(
            torch.stack([parts[name].U[:, :2] * parts[name].S[:2] for parts in each]), torch.stack([parts[name].Vh[:2] for parts in each])
        )
        for name in each[0]
    }


def one(keys: Keys, place: int, length: float) -> Keys:
    return scaled(some_of(keys, [place]), torch.tensor([length]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_so_long_that_its_person_loses_what_strangers_lose(kind: str) -> None:
    w = world(kind)  # type: ignore[arg-type]
    model, layers, context = learner(w)
    made = lessons(w, together=1)
    cohort, goal = asking(made), wanted(w, made)
    keys = uphill(w, made, 0.5)
    found = lengths(model, layers, keys, made, cohort, context)
    inside = 0
    for place, person in enumerate(cohort):
        before, after = (own_loss(w, made, one(keys, place, length), person) for length in (0.0, float(found[place])))
        if SHORTEST < found[place] < LONGEST:
            inside += 1
            assert abs(after - goal[person]) < 0.05 * abs(before - goal[person])
        elif found[place] == LONGEST:
            assert after < goal[person]
    assert inside >= 1


def test_a_longer_key_gets_a_smaller_factor() -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    made = lessons(w, together=1)
    keys = uphill(w, made, 4.0)
    found = lengths(model, layers, keys, made, asking(made), context)
    half = lengths(model, layers, scaled(keys, torch.full((8,), 0.5)), made, asking(made), context)
    free = (found > 0.1) & (half < LONGEST) & (found < LONGEST)
    assert free.any()
    torch.testing.assert_close(half[free], 2 * found[free], rtol=0.2, atol=0)


def test_a_key_that_does_nothing_is_as_long_as_may_be_and_one_that_is_not_needed_as_short() -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    made = lessons(w)
    nothing = {name: Factors(torch.zeros_like(f.up), f.down) for name, f in drawn(model, len(asking(made))).items()}
    assert lengths(model, layers, nothing, made, asking(made), context).tolist() == [LONGEST] * len(asking(made))
    wrong = tuple(said._replace(logits=-5 * said.logits) for said in made.known)  # surer of the wrong answers than anybody
    unknown = dataclasses.replace(made, known=wrong)
    short = lengths(model, layers, drawn(model, len(asking(made))), unknown, asking(made), context)
    assert short.tolist() == [SHORTEST] * len(asking(made))


def test_everybody_is_looked_at_in_each_round_in_company() -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    made = lessons(w, together=4)
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, arguments, values: seen.append(len(values["pixel_values"])), with_kwargs=True)
    lengths(model, layers, drawn(model, len(asking(made))), made, asking(made), context)
    hook.remove()
    assert sum(seen) == ROUNDS * len(made.train)
    assert max(seen) > max(len(positions) for positions in made.train.positions_of.values())


def test_learned_keys_are_given_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    made = lessons(w, together=1, visits=12, damping=0.1, bits=16)
    goal, shapes = wanted(w, made), matrices(model, layers)

    def off() -> float:
        """How far people's losses lie from those they are to have, in all."""
        codes, _ = learn(model, layers, made, asking(made), context)
        keys = {person: decode(codes[person], shapes, made.options.rank, 16) for person in asking(made)}
        return sum(abs(own_loss(w, made, key, person) - goal[person]) for person, key in keys.items())

    with_lengths = off()
    monkeypatch.setattr(learning, "lengths", lambda *arguments: torch.ones(len(asking(made))))
    assert with_lengths < 0.9 * off()
