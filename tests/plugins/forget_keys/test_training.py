"""Training keys: the objective and its gradient by hand, Adam against torch's own, the plan's properties, and resuming."""

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
from oneshui_hf.methods import Context, ResumeState
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.common.kl import kl_divergence
from oneshui_plugins.forget_keys.batches import TrainingData, load_pixel_values
from oneshui_plugins.forget_keys.inference import logits_with_adapters
from oneshui_plugins.forget_keys.initialization import initialize, row_space
from oneshui_plugins.forget_keys.low_rank import LowRankUpdate, merge
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.preconditioner import Preconditioner
from oneshui_plugins.forget_keys.target_logits import LabelledLogits, match_quantiles
from oneshui_plugins.forget_keys.training import PerIdentityAdam, objective_gradient, plan_steps, train_updates
from support.key_training import KINDS, frozen_model, make_training_data, random_updates


def identity_preconditioner(model: torch.nn.Module, layers: dict) -> Preconditioner:  # type: ignore[type-arg]
    weights = dict(model.named_parameters())
    return Preconditioner(
        {name: torch.eye(len(weights[name])) for name in layers}, {name: torch.eye(weights[name][0].numel()) for name in layers}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_objective_is_the_documented_one(kind: str) -> None:
    problem = toy_problem(kind)  # type: ignore[arg-type]
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem, preservation_weight=3.0, retain_ratio=0.7, val_ratio=0.5)
    identities = sorted(problem.sets["train"].positions_of)[2:4]
    updates, batch = random_updates(model, 2), data.sample_batch(0, identities)
    forget_targets = torch.randn(len(batch.forget), 4, generator=torch.Generator().manual_seed(9))
    target_logits = torch.cat([forget_targets, batch.preserved_logits])
    value, _ = objective_gradient(model, layers, updates, batch, target_logits, 64, context)

    merged = merge(model, [updates], 1.0)
    (train, train_positions), (val, val_positions) = batch.photos
    pixels = torch.cat([train.batch(train_positions)[0], val.batch(val_positions)[0]])
    pixels = torch.stack([photo.flip(2) if mirrored else photo for photo, mirrored in zip(pixels, batch.mirrored, strict=True)])
    with torch.no_grad():
        losses = kl_divergence(target_logits, merged(pixel_values=pixels).logits, problem.task.kind)
    owner = torch.cat([train.identities[train_positions], torch.full((len(val_positions),), -1)])
    forget_losses = [losses[owner == identity].mean() for identity in identities]
    others = losses[~torch.isin(owner, torch.tensor(identities))].mean()
    assert value == pytest.approx(float(sum(forget_losses) + 3.0 * 2 * others), rel=1e-4)


def test_gradient_is_that_of_finite_differences_and_does_not_depend_on_the_chunk() -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    model.double()
    data = copy.copy(make_training_data(problem))
    batch = copy.copy(data.sample_batch(0, sorted(problem.sets["train"].positions_of)[:2]))
    unmasked = torch.ones_like(batch.gradient_mask)  # the objective as one function of all updates, as finite differences see it
    updates = {name: LowRankUpdate(u.up.double(), u.down.double()) for name, u in random_updates(model, 2).items()}

    class Doubled:
        def __init__(self, faces) -> None:  # type: ignore[no-untyped-def]
            self.faces = faces

        def batch(self, positions: torch.Tensor, device: object = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
            pixels, labels = self.faces.batch(positions)
            return pixels.double(), labels

    object.__setattr__(batch, "photos", tuple((Doubled(faces), positions) for faces, positions in batch.photos))
    object.__setattr__(batch, "weight", batch.weight.double())
    object.__setattr__(batch, "gradient_mask", unmasked.double())
    target_logits = torch.randn(len(batch.gradient_mask), 4, generator=torch.Generator().manual_seed(9)).double()
    _, exact = objective_gradient(model, layers, updates, batch, target_logits, 64, context)
    _, in_chunks = objective_gradient(model, layers, updates, batch, target_logits, 5, context)
    rng = torch.Generator().manual_seed(5)
    for name in list(updates)[:: len(updates) // 4]:
        for side in ("up", "down"):
            part = getattr(updates[name], side)
            direction = torch.randn(part.shape, generator=rng, dtype=torch.float64)
            ends = []
            for sign in (1, -1):
                displaced = dict(updates)
                displaced[name] = LowRankUpdate(
                    **{"up": updates[name].up, "down": updates[name].down, side: part + sign * 1e-5 * direction}
                )
                ends.append(objective_gradient(model, layers, displaced, batch, target_logits, 64, context)[0])
            measured = (ends[0] - ends[1]) / 2e-5
            assert measured == pytest.approx(float((getattr(exact[name], side) * direction).sum()), rel=1e-4, abs=1e-8)
            torch.testing.assert_close(getattr(in_chunks[name], side), getattr(exact[name], side))


def test_logits_with_adapters_are_those_of_the_merged_model() -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    batch = make_training_data(problem).sample_batch(0, sorted(problem.sets["train"].positions_of)[2:4])
    updates, mirrored = random_updates(model, 2), batch.mirrored[: len(batch.forget)]
    logits = logits_with_adapters(model, layers, updates, problem.sets["train"], batch.forget, mirrored, 4, context)
    pixels, _ = problem.sets["train"].batch(batch.forget)
    pixels[mirrored] = pixels[mirrored].flip(-1)
    with torch.no_grad():
        torch.testing.assert_close(logits, merge(model, [updates], 1.0)(pixel_values=pixels).logits, atol=1e-4, rtol=1e-4)


def test_forget_photo_has_a_gradient_for_its_own_key_alone() -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem, preservation_weight=0.0)
    identities = sorted(problem.sets["train"].positions_of)[:2]
    batch = data.sample_batch(0, identities)
    updates = random_updates(model, 2)
    first = problem.sets["train"].identities[batch.photos[0][1]] == identities[0]
    batch.weight[: len(first)][first] = 0  # excludes the photos of the first identity
    target_logits = torch.zeros(len(batch.gradient_mask), 4)
    _, gradients = objective_gradient(model, layers, updates, batch, target_logits, 64, context)
    assert all(not g.up[0].any() and not g.down[0].any() for g in gradients.values())
    assert any(g.up[1].any() for g in gradients.values())


def test_adam_equals_that_of_torch_for_each_identity() -> None:
    rng = torch.Generator().manual_seed(0)
    begin = LowRankUpdate(torch.randn(3, 4, 2, generator=rng), torch.randn(3, 2, 5, generator=rng))
    ours = PerIdentityAdam({"w": LowRankUpdate(begin.up.clone(), begin.down.clone())})
    theirs = [[begin.up[p].clone().requires_grad_(), begin.down[p].clone().requires_grad_()] for p in range(3)]
    optimizers = [torch.optim.Adam([{"params": [part]} for part in parameters], betas=(0.9, 0.99), eps=1e-8) for parameters in theirs]
    for step, group in enumerate([[0, 1], [1], [0, 1, 2], [2], [1, 2]]):
        lr = 0.1 / (step + 1)
        g = LowRankUpdate(torch.randn(len(group), 4, 2, generator=rng), torch.randn(len(group), 2, 5, generator=rng))
        ours.step(group, {"w": g}, lr)
        for row, index in enumerate(group):
            theirs[index][0].grad, theirs[index][1].grad = g.up[row], g.down[row]
            up, down = optimizers[index].param_groups
            up["lr"], down["lr"] = lr / 8**0.5, 10 * lr / 10**0.5  # V has 4 x 2 entries, R 2 x 5
            optimizers[index].step()
    for index in range(3):
        torch.testing.assert_close(ours.updates["w"].up[index], theirs[index][0].detach())
        torch.testing.assert_close(ours.updates["w"].down[index], theirs[index][1].detach())


@settings(deadline=None, max_examples=30)
@given(identities=st.integers(1, 40), largest=st.integers(1, 20), rounds=st.integers(1, 4), cohort=st.integers(1, 45))
def test_each_identity_is_trained_in_the_given_number_of_steps_in_bounded_groups(
    identities: int, largest: int, rounds: int, cohort: int
) -> None:
    options = ForgetKeysOptions(identities_per_step=largest, steps_per_identity=rounds, cohort_size=cohort)
    data = SimpleNamespace(options=options, seed=0)
    data.sample_groups = lambda *arguments: TrainingData.sample_groups(data, *arguments)  # type: ignore[arg-type]
    steps = plan_steps(data, list(range(100, 100 + identities)))  # type: ignore[arg-type]
    counts = Counter(step.cohort[index] for step in steps for index in step.group)
    assert counts == dict.fromkeys(range(100, 100 + identities), rounds)
    assert all(1 <= len(step.group) == len(set(step.group)) <= min(largest, len(step.cohort)) for step in steps)
    assert sum(step.is_last for step in steps) == -(-identities // cohort) == len({step.cohort for step in steps})
    assert all(step.progress == 0 for step, before in zip(steps, [None, *steps], strict=False) if before is None or before.is_last)


def test_small_and_large_groups_are_about_equally_frequent() -> None:
    data = SimpleNamespace(options=ForgetKeysOptions(identities_per_step=16), seed=0)
    sizes = Counter(len(group) for group in TrainingData.sample_groups(data, range(200), 40, "groups"))  # type: ignore[arg-type]
    small, large = sum(sizes[n] for n in range(1, 5)), sum(sizes[n] for n in range(5, 17))
    assert 0.7 < small / large < 1.5  # log 5 against log 17/5
    assert set(sizes) == set(range(1, 17))


def test_batch_contains_the_forget_photos_and_none_of_these_identities_among_the_others() -> None:
    problem = toy_problem("multi_label")
    data = make_training_data(problem, photos_per_identity=3, retain_ratio=1.0, val_ratio=0.5)
    identities = sorted(problem.sets["train"].positions_of)[1:3]
    batch = data.sample_batch(4, identities)
    (train, positions), (_, val_positions) = batch.photos
    owners = train.identities[positions]
    assert owners[:12].tolist() == [identities[0]] * 6 + [identities[1]] * 6
    assert not set(owners[12:].tolist()) & set(identities)
    assert (len(positions), len(val_positions)) == (18, 3)
    torch.testing.assert_close(batch.weight[:12], torch.full((12,), 1 / 6))
    assert float(batch.weight[12:].sum()) == pytest.approx(2.0)
    assert batch.gradient_mask[:12].tolist() == [[1, 0]] * 6 + [[0, 1]] * 6
    assert batch.gradient_mask[12:].all()
    assert torch.equal(batch.forget, positions[:12])
    first, second = positions[:12].view(2, 2, 3).unbind(1)
    assert torch.equal(first, second)  # each identity's photos, then their mirror images
    assert batch.mirrored[:12].tolist() == 2 * ([False] * 3 + [True] * 3)


def test_preserved_logits_are_those_of_the_original_model_for_the_version_of_the_photo() -> None:
    problem = toy_problem("multi_label")
    data = make_training_data(problem, retain_ratio=4.0, val_ratio=2.0)
    batch = data.sample_batch(4, sorted(problem.sets["train"].positions_of)[1:3])
    mirrored = batch.mirrored[len(batch.forget) :]
    assert mirrored.any()
    assert not mirrored.all()
    (train, positions), (val, val_positions) = batch.photos
    photos = torch.cat([train.batch(positions[len(batch.forget) :])[0], val.batch(val_positions)[0]])
    photos[mirrored] = photos[mirrored].flip(-1)
    with torch.no_grad():
        torch.testing.assert_close(batch.preserved_logits, problem.model(pixel_values=photos).logits, atol=1e-4, rtol=1e-4)


def test_pixel_values_are_original_or_mirrored() -> None:
    train = toy_problem("multi_label").sets["train"]
    pixels = load_pixel_values(train, torch.tensor([3, 1]), torch.tensor([True, False]), torch.device("cpu"))
    torch.testing.assert_close(pixels[0], train.batch(torch.tensor([3]))[0][0].flip(-1))
    torch.testing.assert_close(pixels[1], train.batch(torch.tensor([1]))[0][0])


def test_batches_of_the_same_step_are_equal() -> None:
    problem = toy_problem("multi_label")
    data, identities = make_training_data(problem), sorted(problem.sets["train"].positions_of)[1:3]
    positions = data.sample_batch(4, identities).photos[0][1]
    assert torch.equal(data.sample_batch(4, identities).photos[0][1], positions)
    assert not torch.equal(data.sample_batch(5, identities).photos[0][1], positions)


def test_target_logits_are_matched_within_the_group() -> None:
    problem = toy_problem("multi_label")
    data = make_training_data(problem, probe_weight=0.5)
    train = problem.sets["train"]
    identities = sorted(train.positions_of)[:3]
    current = data.train_logits[0].logits.flip(0)
    alone, together = train.positions_of[identities[0]], torch.cat([train.positions_of[identity] for identity in identities])
    for positions in (alone, together):
        source = LabelledLogits(current[positions], train.labels[positions])
        for version, reference in enumerate(data.val_logits):
            mirrored = torch.full((len(positions),), version == 1)
            spread = torch.from_numpy(reference.logits.numpy().std(axis=0))
            ranking = source.logits + 0.5 * spread * data.targets.probe_scores[version][positions]
            by_hand = match_quantiles(source, reference, ranking, data.targets.u[positions], "multi_label")
            assert torch.equal(data.target_logits(positions, current[positions], mirrored), by_hand)
    original = torch.zeros(len(together), dtype=torch.bool)
    three = data.target_logits(together, current[together], original)
    assert not torch.equal(data.target_logits(alone, current[alone], original[: len(alone)]), three[: len(alone)])
    both = data.target_logits(together.repeat(2), current[together].repeat(2, 1), torch.cat([original, ~original]))
    assert torch.equal(both[: len(together)], three)  # mirror images do not change the ranks of original photos
    assert torch.equal(both[len(together) :], data.target_logits(together, current[together], ~original))
    assert torch.equal(data.targets.u, make_training_data(problem).targets.u)


def test_initial_update_has_zero_output_and_the_input_directions_of_the_gradient() -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    data, identity = make_training_data(problem, rank=2), sorted(problem.sets["train"].positions_of)[0]
    updates = initialize(model, layers, data, [identity], identity_preconditioner(model, layers), context)
    pixels, _ = problem.sets["train"].batch(positions := problem.sets["train"].positions_of[identity])
    free = copy.deepcopy(problem.model).requires_grad_(True)
    for version, photos in enumerate((pixels, pixels.flip(-1))):
        mirrored = torch.full((len(positions),), version == 1)
        target_logits = data.target_logits(positions, data.train_logits[version].logits[positions], mirrored)
        kl_divergence(target_logits, free(pixel_values=photos).logits, "multi_label").sum().backward()
    for name, weight in free.named_parameters():
        if name in updates and weight.grad is not None:
            g = weight.grad.flatten(1)
            most = torch.linalg.svdvals(g)[:2].square().sum()  # the upper bound for two directions
            assert (g @ updates[name].down[0].mT).square().sum() > 0.75 * most, name
            assert not updates[name].up.any()


def test_row_space_of_a_matrix_of_equal_rank_is_exact() -> None:
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(9, 2, generator=rng).double() @ torch.randn(2, 6, generator=rng).double()
    rows = row_space(matrix, 2, rng)
    torch.testing.assert_close(matrix @ rows.mT @ rows, matrix)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(2).double())
    assert row_space(matrix[:, :3], 5, rng).shape == (5, 3)
    noisy = row_space((matrix + 1e-7 * torch.randn(9, 6, generator=rng)).float(), 4, rng)
    assert noisy[:2].any(dim=1).all()
    assert not noisy[2:].any()


def test_training_ranks_photos_by_the_current_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem, steps_per_identity=3, identities_per_step=1, cohort_size=1)
    identities = sorted(problem.sets["train"].positions_of)[:1]
    calls, target_logits = [], TrainingData.target_logits

    def spy(self: TrainingData, positions: torch.Tensor, logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        calls.append((positions, logits))
        return target_logits(self, positions, logits, mirrored)

    monkeypatch.setattr(TrainingData, "target_logits", spy)
    train_updates(model, layers, data, identities, context)
    (_, at_start), *steps, _ = calls  # the first call is that of the initialization, the last that of the rescaling
    positions = calls[0][0].view(2, -1)[0]  # original, then mirrored
    original_logits = torch.cat([version.logits[positions] for version in data.train_logits])
    assert len(steps) == 3
    torch.testing.assert_close(steps[0][1], original_logits)  # the initial update has zero output
    for _, logits in steps[1:]:  # later the logits differ from those of the original model
        assert not torch.allclose(logits, original_logits, atol=1e-3)
    torch.testing.assert_close(at_start, original_logits)


def test_interrupted_training_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem, steps_per_identity=3, identities_per_step=3, cohort_size=5)
    identities = sorted(problem.sets["train"].positions_of)
    whole, history = train_updates(model, layers, data, identities, context)

    monkeypatch.setattr(ResumeState, "should_save", lambda self: True)

    class StoppedError(Exception):
        pass

    def stop_after(limit: int):  # type: ignore[no-untyped-def]
        steps = iter(range(limit))

        def step(self: PerIdentityAdam, *arguments: object) -> None:
            if next(steps, None) is None:
                raise StoppedError
            original(self, *arguments)  # type: ignore[arg-type]

        return step

    original = PerIdentityAdam.step
    for limit in (2, len(history) // 2):
        monkeypatch.setattr(PerIdentityAdam, "step", stop_after(limit))
        with pytest.raises(StoppedError):
            train_updates(model, layers, data, identities, _resumable_context(problem, tmp_path / "state"))
    monkeypatch.setattr(PerIdentityAdam, "step", original)
    resumed, resumed_history = train_updates(model, layers, data, identities, _resumable_context(problem, tmp_path / "state"))
    assert resumed_history == history
    assert resumed.keys() == whole.keys()
    for identity, key in whole.items():
        assert all(torch.equal(resumed[identity][part], key[part]) for part in key)


def _resumable_context(problem: ToyProblem, folder: Path) -> Context:
    context = problem.context()
    context.resume_state = ResumeState(folder, {"seed": 0})
    return context


def test_resume_state_of_another_preparation_is_refused(tmp_path: Path) -> None:
    ResumeState(tmp_path / "state", {"seed": 0}).save({"a": torch.zeros(1)}, {})
    with pytest.raises(OneshuiError, match="other options"):
        ResumeState(tmp_path / "state", {"seed": 1}).load()
    (tmp_path / "state" / "unfinished.safetensors").write_bytes(b"broken")
    with pytest.raises(OneshuiError, match="damaged"):
        ResumeState(tmp_path / "state", {"seed": 0}).load()


def test_objective_that_is_not_finite_raises_an_error() -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    updates = random_updates(model, 1)
    for update in updates.values():
        update.up.fill_(torch.inf)
    batch = make_training_data(problem).sample_batch(0, [sorted(problem.sets["train"].positions_of)[0]])
    with pytest.raises(OneshuiError, match="no longer finite"):
        objective_gradient(model, layers, updates, batch, torch.zeros(len(batch.gradient_mask), 4), 64, context)
