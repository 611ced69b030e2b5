"""Learning keys: the objective and its gradient by hand, Adam against torch's own, the plan's properties, and going on after a stop."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshui_hf.errors import OneshuiError
from oneshui_hf.methods import Context, Unfinished
from oneshui_hf.testing.toy_problem import World, world
from oneshui_plugins.common.kl import divergence
from oneshui_plugins.forget_keys.batches import Lessons, shown
from oneshui_plugins.forget_keys.inference import said_with
from oneshui_plugins.forget_keys.initialization import row_space, start
from oneshui_plugins.forget_keys.low_rank import Factors, opened
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.preconditioner import Coordinates
from oneshui_plugins.forget_keys.target_logits import Said, as_strangers
from oneshui_plugins.forget_keys.training import Adam, gradient, learn, plan
from support.key_training import KINDS, drawn, learner, lessons


def plain(model: torch.nn.Module, layers: dict) -> Coordinates:  # type: ignore[type-arg]
    weights = dict(model.named_parameters())
    return Coordinates(
        {name: torch.eye(len(weights[name])) for name in layers}, {name: torch.eye(weights[name][0].numel()) for name in layers}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_the_one_that_is_stated(kind: str) -> None:
    w = world(kind)  # type: ignore[arg-type]
    model, layers, context = learner(w)
    made = lessons(w, balance=3.0, retain=0.7, val=0.5)
    people = sorted(w.sets["train"].positions_of)[2:4]
    keys, lesson = drawn(model, 2), made.lesson(0, people)
    wanted = torch.cat([torch.randn(len(lesson.forget), 4, generator=torch.Generator().manual_seed(9)), lesson.kept])
    value, _ = gradient(model, layers, keys, lesson, wanted, 64, context)

    changed = opened(model, [keys], 1.0)
    (train, first), (val, second) = lesson.photos
    pixels = torch.cat([train.batch(first)[0], val.batch(second)[0]])
    pixels = torch.stack([photo.flip(2) if mirrored else photo for photo, mirrored in zip(pixels, lesson.mirrored, strict=True)])
    with torch.no_grad():
        far = divergence(wanted, changed(pixel_values=pixels).logits, w.task.kind)
    owner = torch.cat([train.identities[first], torch.full((len(second),), -1)])
    asked = [far[owner == person].mean() for person in people]
    others = far[~torch.isin(owner, torch.tensor(people))].mean()
    assert value == pytest.approx(float(sum(asked) + 3.0 * 2 * others), rel=1e-4)


def test_the_gradient_is_that_of_finite_differences_and_passes_do_not_matter() -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    model.double()
    wide = copy.copy(lessons(w))
    lesson = wide.lesson(0, sorted(w.sets["train"].positions_of)[:2])
    lesson = copy.copy(lesson)
    object.__setattr__(lesson, "own", torch.ones_like(lesson.own))  # as one function of all keys, which differences can follow
    keys = {name: Factors(f.up.double(), f.down.double()) for name, f in drawn(model, 2).items()}

    class Doubled:
        def __init__(self, faces) -> None:  # type: ignore[no-untyped-def]
            self.faces = faces

        def batch(self, positions: torch.Tensor, device: object = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
            pixels, labels = self.faces.batch(positions)
            return pixels.double(), labels

    object.__setattr__(lesson, "photos", tuple((Doubled(faces), positions) for faces, positions in lesson.photos))
    wanted = torch.randn(len(lesson.own), 4, generator=torch.Generator().manual_seed(9)).double()
    object.__setattr__(lesson, "weight", lesson.weight.double())
    object.__setattr__(lesson, "own", lesson.own.double())
    _, exact = gradient(model, layers, keys, lesson, wanted, 64, context)
    _, in_passes = gradient(model, layers, keys, lesson, wanted, 5, context)
    draws = torch.Generator().manual_seed(5)
    for name in list(keys)[:: len(keys) // 4]:
        for way in ("up", "down"):
            part = getattr(keys[name], way)
            direction = torch.randn(part.shape, generator=draws, dtype=torch.float64)
            ends = []
            for sign in (1, -1):
                moved = dict(keys)
                moved[name] = Factors(**{"up": keys[name].up, "down": keys[name].down, way: part + sign * 1e-5 * direction})
                ends.append(gradient(model, layers, moved, lesson, wanted, 64, context)[0])
            measured = (ends[0] - ends[1]) / 2e-5
            assert measured == pytest.approx(float((getattr(exact[name], way) * direction).sum()), rel=1e-4, abs=1e-8)
            torch.testing.assert_close(getattr(in_passes[name], way), getattr(exact[name], way))


def test_what_the_model_says_now_is_said_with_the_keys() -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    lesson, keys = lessons(w).lesson(0, sorted(w.sets["train"].positions_of)[2:4]), drawn(model, 2)
    mirrored = lesson.mirrored[: len(lesson.forget)]
    now = said_with(model, layers, keys, w.sets["train"], lesson.forget, mirrored, 4, context)
    pixels, _ = w.sets["train"].batch(lesson.forget)
    pixels[mirrored] = pixels[mirrored].flip(-1)
    with torch.no_grad():
        torch.testing.assert_close(now, opened(model, [keys], 1.0)(pixel_values=pixels).logits, atol=1e-4, rtol=1e-4)


def test_a_forget_photo_moves_its_own_persons_key_alone() -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    made = lessons(w, balance=0.0)
    people = sorted(w.sets["train"].positions_of)[:2]
    lesson = made.lesson(0, people)
    keys = drawn(model, 2)
    first = w.sets["train"].identities[lesson.photos[0][1]] == people[0]
    lesson.weight[: len(first)][first] = 0  # the first person's photos count nothing
    wanted = torch.zeros(len(lesson.own), 4)
    _, gradients = gradient(model, layers, keys, lesson, wanted, 64, context)
    assert all(not g.up[0].any() and not g.down[0].any() for g in gradients.values())
    assert any(g.up[1].any() for g in gradients.values())


def test_adam_is_torchs_adam_for_each_person_by_itself() -> None:
    draws = torch.Generator().manual_seed(0)
    begin = Factors(torch.randn(3, 4, 2, generator=draws), torch.randn(3, 2, 5, generator=draws))
    ours = Adam({"w": Factors(begin.up.clone(), begin.down.clone())})
    theirs = [[begin.up[p].clone().requires_grad_(), begin.down[p].clone().requires_grad_()] for p in range(3)]
    optimizers = [torch.optim.Adam([{"params": [part]} for part in parameters], betas=(0.9, 0.99), eps=1e-8) for parameters in theirs]
    for step, people in enumerate([[0, 1], [1], [0, 1, 2], [2], [1, 2]]):
        lr = 0.1 / (step + 1)
        g = Factors(torch.randn(len(people), 4, 2, generator=draws), torch.randn(len(people), 2, 5, generator=draws))
        ours.step(people, {"w": g}, lr)
        for place, person in enumerate(people):
            theirs[person][0].grad, theirs[person][1].grad = g.up[place], g.down[place]
            up, down = optimizers[person].param_groups
            up["lr"], down["lr"] = lr / 8**0.5, 10 * lr / 10**0.5  # V has 4 x 2 numbers, R 2 x 5
            optimizers[person].step()
    for person in range(3):
        torch.testing.assert_close(ours.keys["w"].up[person], theirs[person][0].detach())
        torch.testing.assert_close(ours.keys["w"].down[person], theirs[person][1].detach())


@settings(deadline=None, max_examples=30)
@given(people=st.integers(1, 40), together=st.integers(1, 20), visits=st.integers(1, 4), cohort=st.integers(1, 45))
def test_everybody_asks_once_a_visit_in_groups_within_the_bound(people: int, together: int, visits: int, cohort: int) -> None:
    made = SimpleNamespace(options=ForgetKeysOptions(together=together, visits=visits, cohort=cohort), seed=0)
    made.groups = lambda *arguments: Lessons.groups(made, *arguments)  # type: ignore[arg-type]
    steps = plan(made, list(range(100, 100 + people)))  # type: ignore[arg-type]
    asked = Counter(step.cohort[place] for step in steps for place in step.group)
    assert asked == dict.fromkeys(range(100, 100 + people), visits)
    assert all(1 <= len(step.group) == len(set(step.group)) <= min(together, len(step.cohort)) for step in steps)
    assert sum(step.last for step in steps) == -(-people // cohort) == len({step.cohort for step in steps})
    assert all(step.done == 0 for step, before in zip(steps, [None, *steps], strict=False) if before is None or before.last)


def test_few_and_many_ask_about_equally_often() -> None:
    made = SimpleNamespace(options=ForgetKeysOptions(together=16), seed=0)
    sizes = Counter(len(group) for group in Lessons.groups(made, range(200), 40, "groups"))  # type: ignore[arg-type]
    few, many = sum(sizes[n] for n in range(1, 5)), sum(sizes[n] for n in range(5, 17))
    assert 0.7 < few / many < 1.5  # log 5 against log 17/5
    assert set(sizes) == set(range(1, 17))


def test_lessons_hold_the_photos_of_those_who_ask_and_none_of_theirs_among_the_others() -> None:
    w = world("multi_label")
    made = lessons(w, photos=3, retain=1.0, val=0.5)
    people = sorted(w.sets["train"].positions_of)[1:3]
    lesson = made.lesson(4, people)
    (train, positions), (_, strange) = lesson.photos
    owners = train.identities[positions]
    assert owners[:12].tolist() == [people[0]] * 6 + [people[1]] * 6
    assert not set(owners[12:].tolist()) & set(people)
    assert (len(positions), len(strange)) == (18, 3)
    torch.testing.assert_close(lesson.weight[:12], torch.full((12,), 1 / 6))
    assert float(lesson.weight[12:].sum()) == pytest.approx(2.0)
    assert lesson.own[:12].tolist() == [[1, 0]] * 6 + [[0, 1]] * 6
    assert lesson.own[12:].all()
    assert torch.equal(lesson.forget, positions[:12])
    first, second = positions[:12].view(2, 2, 3).unbind(1)
    assert torch.equal(first, second)  # each person's photos as they are, then mirrored
    assert lesson.mirrored[:12].tolist() == 2 * ([False] * 3 + [True] * 3)


def test_what_stays_is_what_the_original_says_of_the_photo_as_it_is_shown() -> None:
    w = world("multi_label")
    made = lessons(w, retain=4.0, val=2.0)
    lesson = made.lesson(4, sorted(w.sets["train"].positions_of)[1:3])
    held = lesson.mirrored[len(lesson.forget) :]
    assert held.any()
    assert not held.all()
    (train, positions), (val, strange) = lesson.photos
    photos = torch.cat([train.batch(positions[len(lesson.forget) :])[0], val.batch(strange)[0]])
    photos[held] = photos[held].flip(-1)
    with torch.no_grad():
        torch.testing.assert_close(lesson.kept, w.model(pixel_values=photos).logits, atol=1e-4, rtol=1e-4)


def test_a_photo_is_shown_as_it_is_or_mirrored() -> None:
    train = world("multi_label").sets["train"]
    pixels = shown(train, torch.tensor([3, 1]), torch.tensor([True, False]), torch.device("cpu"))
    torch.testing.assert_close(pixels[0], train.batch(torch.tensor([3]))[0][0].flip(-1))
    torch.testing.assert_close(pixels[1], train.batch(torch.tensor([1]))[0][0])


def test_lessons_are_the_same_for_the_same_step() -> None:
    w = world("multi_label")
    made, people = lessons(w), sorted(w.sets["train"].positions_of)[1:3]
    positions = made.lesson(4, people).photos[0][1]
    assert torch.equal(made.lesson(4, people).photos[0][1], positions)
    assert not torch.equal(made.lesson(5, people).photos[0][1], positions)


def test_targets_are_strangers_answers_among_those_who_ask_together() -> None:
    w = world("multi_label")
    made = lessons(w, guesses=0.5)
    train = w.sets["train"]
    people = sorted(train.positions_of)[:3]
    now = made.known[0].logits.flip(0)
    alone, together = train.positions_of[people[0]], torch.cat([train.positions_of[person] for person in people])
    for positions in (alone, together):
        said = Said(now[positions], train.labels[positions])
        for version, strange in enumerate(made.strange):
            mirrored = torch.full((len(positions),), version == 1)
            spread = torch.from_numpy(strange.logits.numpy().std(axis=0))
            order = said.logits + 0.5 * spread * made.guesses[version][positions]
            by_hand = as_strangers(said, strange, order, made.luck[positions], "multi_label")
            assert torch.equal(made.targets(positions, now[positions], mirrored), by_hand)
    straight = torch.zeros(len(together), dtype=torch.bool)
    three = made.targets(together, now[together], straight)
    assert not torch.equal(made.targets(alone, now[alone], straight[: len(alone)]), three[: len(alone)])
    both = made.targets(together.repeat(2), now[together].repeat(2, 1), torch.cat([straight, ~straight]))
    assert torch.equal(both[: len(together)], three)  # mirror images do not change the ranks of photos as they are
    assert torch.equal(both[len(together) :], made.targets(together, now[together], ~straight))
    assert torch.equal(made.luck, lessons(w).luck)


def test_a_key_starts_silent_and_listens_where_its_gradient_lies() -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    made, person = lessons(w, rank=2), sorted(w.sets["train"].positions_of)[0]
    keys = start(model, layers, made, [person], plain(model, layers), context)
    pixels, _ = w.sets["train"].batch(positions := w.sets["train"].positions_of[person])
    free = copy.deepcopy(w.model).requires_grad_(True)
    for version, photos in enumerate((pixels, pixels.flip(-1))):
        wanted = made.targets(positions, made.known[version].logits[positions], torch.full((len(positions),), version == 1))
        divergence(wanted, free(pixel_values=photos).logits, "multi_label").sum().backward()
    for name, weight in free.named_parameters():
        if name in keys and weight.grad is not None:
            g = weight.grad.flatten(1)
            most = torch.linalg.svdvals(g)[:2].square().sum()  # what no two directions can exceed
            assert (g @ keys[name].down[0].mT).square().sum() > 0.75 * most, name
            assert not keys[name].up.any()


def test_the_row_space_of_a_matrix_of_that_rank_is_found_exactly() -> None:
    draws = torch.Generator().manual_seed(0)
    matrix = torch.randn(9, 2, generator=draws).double() @ torch.randn(2, 6, generator=draws).double()
    rows = row_space(matrix, 2, draws)
    torch.testing.assert_close(matrix @ rows.mT @ rows, matrix)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(2).double())
    assert row_space(matrix[:, :3], 5, draws).shape == (5, 3)
    noisy = row_space((matrix + 1e-7 * torch.randn(9, 6, generator=draws)).float(), 4, draws)
    assert noisy[:2].any(dim=1).all()
    assert not noisy[2:].any()


def test_learning_ranks_photos_by_what_the_model_says_in_that_step(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    made, people = lessons(w, visits=3, together=1, cohort=1), sorted(w.sets["train"].positions_of)[:1]
    asked, targets = [], Lessons.targets

    def spied(self: Lessons, positions: torch.Tensor, logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        asked.append((positions, logits))
        return targets(self, positions, logits, mirrored)

    monkeypatch.setattr(Lessons, "targets", spied)
    learn(model, layers, made, people, context)
    (_, at_start), *steps, _ = asked  # the first are asked for to find where a key starts, the last how long it shall be
    positions = asked[0][0].view(2, -1)[0]  # as they are, then mirrored
    known = torch.cat([said.logits[positions] for said in made.known])
    assert len(steps) == 3
    torch.testing.assert_close(steps[0][1], known)  # a key starts silent
    for _, logits in steps[1:]:  # what it says by then is no longer what it said before there was a key
        assert not torch.allclose(logits, known, atol=1e-3)
    torch.testing.assert_close(at_start, known)


def test_interrupted_learning_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    made, people = lessons(w, visits=3, together=3, cohort=5), sorted(w.sets["train"].positions_of)
    whole, history = learn(model, layers, made, people, context)

    monkeypatch.setattr(Unfinished, "due", lambda self: True)

    class StoppedError(Exception):
        pass

    def stopping(limit: int):  # type: ignore[no-untyped-def]
        taken = iter(range(limit))

        def step(self: Adam, *arguments: object) -> None:
            if next(taken, None) is None:
                raise StoppedError
            original(self, *arguments)  # type: ignore[arg-type]

        return step

    original = Adam.step
    for limit in (2, len(history) // 2):
        monkeypatch.setattr(Adam, "step", stopping(limit))
        with pytest.raises(StoppedError):
            learn(model, layers, made, people, _remembering(w, tmp_path / "state"))
    monkeypatch.setattr(Adam, "step", original)
    again, history_again = learn(model, layers, made, people, _remembering(w, tmp_path / "state"))
    assert history_again == history
    assert again.keys() == whole.keys()
    for person, codes in whole.items():
        assert all(torch.equal(again[person][part], codes[part]) for part in codes)


def _remembering(w: World, folder: Path) -> Context:
    context = w.context()
    context.unfinished = Unfinished(folder, {"seed": 0})
    return context


def test_another_preparations_state_is_refused(tmp_path: Path) -> None:
    Unfinished(tmp_path / "state", {"seed": 0}).save({"a": torch.zeros(1)}, {})
    with pytest.raises(OneshuiError, match="other options"):
        Unfinished(tmp_path / "state", {"seed": 1}).load()
    (tmp_path / "state" / "unfinished.safetensors").write_bytes(b"broken")
    with pytest.raises(OneshuiError, match="damaged"):
        Unfinished(tmp_path / "state", {"seed": 0}).load()


def test_an_objective_that_is_not_finite_gets_a_sentence() -> None:
    w = world("multi_label")
    model, layers, context = learner(w)
    keys = drawn(model, 1)
    for factors in keys.values():
        factors.up.fill_(torch.inf)
    lesson = lessons(w).lesson(0, [sorted(w.sets["train"].positions_of)[0]])
    with pytest.raises(OneshuiError, match="no longer finite"):
        gradient(model, layers, keys, lesson, torch.zeros(len(lesson.own), 4), 64, context)
