"""What an unencrypted forget key reveals to an attacker who also has the model that it was made for.

python tests/studies/read_keys.py [--people N] [--run RUN]

Owner identification: the key is applied to candidates' photos, and the candidates are ranked by its effect on them. Reconstruction: a
picture is optimised for the strongest response of the key, and compared with the owner's photos. Without a run, a tiny model first
memorises generated faces. Only statistics over all people are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import TaskKind
from oneshui_hf.errors import OneshuiError
from oneshui_hf.methods import Context, DataAccess, generator
from oneshui_hf.metrics.intervals import bootstrap
from oneshui_hf.models.load import load_model
from oneshui_hf.models.outputs import losses, predict
from oneshui_hf.runs import Run
from oneshui_hf.stages.command_options import TrainOptions
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.run_data import open_data
from oneshui_hf.stages.train import train
from oneshui_plugins.common.input_covariance import Layer, input_covariances, input_rows
from oneshui_plugins.common.kl import kl_divergence
from oneshui_plugins.forget_keys.initialization import row_space
from oneshui_plugins.forget_keys.low_rank import LowRankUpdate, Updates, select_identities, target_layers
from oneshui_plugins.forget_keys.method import ForgetKeys, matrix_shapes
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.quantization import dequantize

SEED, OPTIONS = 0, ForgetKeysOptions(targets="quantile")
INVERSION_LR, TV_WEIGHT, CHANGE_WEIGHT = 0.02, 3.0, 0.3  # Adam on pixels between 0 and 1, total variation, change of the logits
RESAMPLES = 2000
FLOOR = 1e-12  # of what a logarithm is taken of

Inputs = dict[str, torch.Tensor]  # by the weight's name: its input rows, (photos, rows, d)
InputScore = Callable[[Inputs], torch.Tensor]  # from input rows to a score of each photo, (n,)
PhotoScore = Callable[[torch.Tensor], torch.Tensor]  # from pixel values to the score of each photo, (n,)
Bases = Mapping[str, torch.Tensor]  # by the weight's name: orthonormal directions of its inputs, (keys, d, r)


@dataclass(frozen=True)
class Attack:
    """What the attacker has, and the photos that the attacks are evaluated on.

    Attributes:
        model: The model that the keys were made for.
        kind: Of its task.
        layers: The layers that keys update.
        updates: The keys of all people, in their order.
        people: Their identity numbers.
        known: The training photos of these people.
        unseen: Photos of them that the model was not trained on, one each.
        others: Photos of other identities, which the attacker has.
        whiten: By the weight's name, estimated on `others`: the matrix (d, d) that gives inputs equal energy in all directions.
        unwhiten: Its inverse.
    """

    model: torch.nn.Module
    kind: TaskKind
    layers: Mapping[str, list[Layer]]
    updates: Updates
    people: list[int]
    known: FaceSet
    unseen: FaceSet
    others: FaceSet
    whiten: Mapping[str, torch.Tensor]
    unwhiten: Mapping[str, torch.Tensor]


def train_memorising_model(folder: Path) -> Run:
    """Train the tiny model on generated faces until it has memorised them; one photo of each person is excluded."""
    recipe = TrainOptions(
        dataset="synthetic",
        forget=1,
        reserve_supports=36,
        epochs=60,
        optimizer="adamw",
        augment="none",
        keep="last",
        output_dir=str(folder / "run"),
    )
    return train(recipe)


def prepare_attack(run: Run, most: int) -> Attack:
    """Prepare keys for at most so many people of a run, in memory, and dequantize them as an attacker would."""
    accelerator = make_accelerator()
    sets = open_data(run, accelerator).sets
    model, _, task = load_model(run.path, accelerator.device)
    model.requires_grad_(False)
    train_set, val = sets["train"], sets["val"]
    held = {person: faces.subset(at[:1]) for faces in (sets["reserved"], sets["support"]) for person, at in faces.positions_of.items()}
    people = sorted(held)[:most]
    rows = torch.cat([torch.from_numpy(held[person].rows) for person in people]).numpy()
    labels = torch.cat([held[person].labels for person in people])
    unseen = dataclasses.replace(sets["support"], rows=rows, labels=labels, identities=torch.tensor(people))
    context = Context(task, SEED, accelerator, request_size=1)
    limited = dataclasses.replace(train_set, excluded_from_simulation=frozenset(train_set.positions_of) - frozenset(people))
    data = DataAccess({"train": limited, "val": val}, ForgetKeys.needs.prepare)
    artefact = ForgetKeys().prepare(model, data, OPTIONS, context)
    layers = target_layers(model, OPTIONS.target_fraction)
    shapes = matrix_shapes(model, layers)
    each = [dequantize(artefact.people[train_set.people[person]], shapes, OPTIONS.rank, OPTIONS.bits) for person in people]
    updates = {name: LowRankUpdate(torch.cat([u[name].up for u in each]), torch.cat([u[name].down for u in each])) for name in layers}
    known = train_set.subset(torch.cat([train_set.positions_of[person] for person in people]))
    whiten, unwhiten = estimate_whitening(model, layers, val, context)
    return Attack(model, task.kind, layers, updates, people, known, unseen, val, whiten, unwhiten)


def estimate_whitening(
    model: torch.nn.Module, layers: Mapping[str, list[Layer]], others: FaceSet, context: Context
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the input preconditioner of the keys as estimated on other identities' photos, and its inverse, by the weight's name."""
    found = input_covariances(model, len(others), lambda rows: others.batch(rows)[0], OPTIONS.chunk, context)
    whiten, unwhiten = {}, {}
    for name in layers:
        eigenvalues, vectors = torch.linalg.eigh(found[name].matrix[0])
        roots = (eigenvalues.clamp(min=0) + OPTIONS.damping * eigenvalues.mean()).sqrt()
        whiten[name], unwhiten[name] = ((vectors * scale) @ vectors.mT for scale in (1 / roots, roots))
    return {name: m.float() for name, m in whiten.items()}, {name: m.float() for name, m in unwhiten.items()}


def input_rows_by_photo(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Return the input rows of a layer's weight, (photos, rows, d)."""
    rows = input_rows(layer, x)[0]
    return rows.view(len(x), -1, rows.shape[-1])


@contextmanager
def record_inputs(layers: Mapping[str, list[Layer]]) -> Iterator[Inputs]:
    """Record the input rows of each weight for the duration of the block."""
    inputs: Inputs = {}

    def hook_of(name: str) -> Callable[..., None]:
        def record(layer: Layer, arguments: tuple[torch.Tensor, ...]) -> None:
            inputs[name] = input_rows_by_photo(layer, arguments[0])

        return record

    hooks = [layer.register_forward_pre_hook(hook_of(name)) for name, users in layers.items() for layer in users]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def with_one_key_per_photo(layers: Mapping[str, list[Layer]], updates: Updates) -> Iterator[None]:
    """Apply the i-th key to the i-th photo alone, or a single key to all photos, for the duration of the block."""

    def hook_of(name: str) -> Callable[..., torch.Tensor]:
        def add(layer: Layer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            more = input_rows_by_photo(layer, inputs[0]) @ updates[name].down.mT @ updates[name].up.mT  # (photos, rows, out)
            return output + (more.mT if isinstance(layer, torch.nn.Conv2d) else more).reshape(output.shape)

        return add

    hooks = [layer.register_forward_hook(hook_of(name)) for name, users in layers.items() for layer in users]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def logit_change(attack: Attack, updates: Updates) -> PhotoScore:
    """Return a score: how much keys change the logits of a photo, log KL(model || model with key)."""

    def score(pixels: torch.Tensor) -> torch.Tensor:
        before = attack.model(pixel_values=pixels).logits
        with with_one_key_per_photo(attack.layers, updates):
            after = attack.model(pixel_values=pixels).logits
        return kl_divergence(before, after, attack.kind).clamp(min=FLOOR).log()

    return score


def on_inputs(attack: Attack, input_score: InputScore) -> PhotoScore:
    """Return an input score as a score of photos."""

    def score(pixels: torch.Tensor) -> torch.Tensor:
        with record_inputs(attack.layers) as inputs:
            attack.model(pixel_values=pixels)
        return input_score(inputs)

    return score


def key_directions(attack: Attack, updates: Updates) -> Bases:
    """Return the span of D in whitened coordinates."""
    return {name: torch.linalg.qr((u.down @ attack.unwhiten[name]).mT).Q for name, u in updates.items()}


def photo_directions(attack: Attack) -> Bases:
    """Return the directions of largest energy of each person's whitened inputs, which a key that stored photos would contain."""
    with torch.no_grad(), record_inputs(attack.layers) as inputs:
        attack.model(pixel_values=attack.known.batch(torch.arange(len(attack.known)))[0])
    photos = [attack.known.positions_of[person] for person in attack.people]
    rng = generator(SEED, "loudest")
    return {
        name: torch.stack([row_space(inputs[name][some].flatten(0, 1) @ matrix, OPTIONS.rank, rng).mT for some in photos])
        for name, matrix in attack.whiten.items()
    }


def energy_fraction(attack: Attack, bases: Bases) -> InputScore:
    """Return a score: the fraction of a photo's whitened input energy in these directions, its logarithm, mean over the weights."""

    def score(inputs: Inputs) -> torch.Tensor:
        fractions = []
        for name, basis in bases.items():
            z = inputs[name] @ attack.whiten[name]
            fractions.append((z @ basis).square().sum(dim=(1, 2)) / z.square().sum(dim=(1, 2)))
        return torch.stack(fractions).clamp(min=FLOOR).log().mean(dim=0)

    return score


def relative_response(attack: Attack, updates: Updates) -> InputScore:
    """Return a score: the energy of D's response relative to the mean of other identities, its logarithm, mean over the rank-one terms."""
    usual = {name: (u.down @ attack.unwhiten[name]).square().sum(dim=2) for name, u in updates.items()}  # (keys, r)

    def score(inputs: Inputs) -> torch.Tensor:
        ratios = [(inputs[name] @ u.down.mT).square().mean(dim=1) / usual[name] for name, u in updates.items()]  # (photos, r) each
        return torch.cat(ratios, dim=1).clamp(min=FLOOR).log().mean(dim=1)

    return score


def mean_by_person(attack: Attack, faces: FaceSet, values: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values of each person's photos, (people, ...)."""
    return torch.stack([values[faces.positions_of[person]].mean(dim=0) for person in attack.people])


def score_candidates(attack: Attack, faces: FaceSet) -> dict[str, torch.Tensor]:
    """Return the effect of every key on each person's photos of a set, by attack: scores (keys, people)."""
    pixels, labels = faces.batch(torch.arange(len(faces)))
    scores: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        with record_inputs(attack.layers) as inputs:
            before = attack.model(pixel_values=pixels).logits
        for update in (select_identities(attack.updates, [index]) for index in range(len(attack.people))):
            with with_one_key_per_photo(attack.layers, update):
                after = attack.model(pixel_values=pixels).logits
            found = {
                "rise of the loss": losses(after, labels, attack.kind) - losses(before, labels, attack.kind),
                "change of the logits": kl_divergence(before, after, attack.kind),
                "response of D, not applied": relative_response(attack, update)(inputs),
                "input directions in D, not applied": energy_fraction(attack, key_directions(attack, update))(inputs),
            }
            for name, values in found.items():
                scores.setdefault(name, []).append(mean_by_person(attack, faces, values))
    return {name: torch.stack(rows) for name, rows in scores.items()}


def own_ranks(scores: torch.Tensor) -> torch.Tensor:
    """Return the rank of each row's diagonal entry, 1 for the largest, with ties sharing their mean rank; (n,) from (n, n)."""
    own = scores.diagonal().unsqueeze(1)
    return 1 + (scores > own).sum(dim=1) + ((scores == own).sum(dim=1) - 1) / 2


def correlation(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Return the correlation of pictures (n, ...) with pictures (m, ...), (n, m); 0 where one is a single colour."""
    a, b = (x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True) for x in (one, two))
    size = a.norm(dim=1).unsqueeze(1) * b.norm(dim=1)
    return torch.where(size > 1e-6, a @ b.mT / size.clamp(min=1e-6), 0.0)


def reconstruct(start: torch.Tensor, score: PhotoScore, preprocess: Preprocess, steps: int) -> torch.Tensor:
    """Return pictures, 0..1 (n, 3, S, S), optimised from `start` for the largest score under a total-variation prior."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    picture = start.clone().requires_grad_()
    adam = torch.optim.Adam([picture], lr=INVERSION_LR)
    for _ in range(steps):
        edges = picture.diff(dim=2).abs().mean(dim=(1, 2, 3)) + picture.diff(dim=3).abs().mean(dim=(1, 2, 3))
        objective = (TV_WEIGHT * edges - score((picture - mean) / std)).sum()
        adam.zero_grad()
        objective.backward()
        adam.step()
        with torch.no_grad():
            picture.clamp_(0, 1)
    return picture.detach()


def format_interval(values: torch.Tensor) -> str:
    """Return a mean over people with its 95 % interval."""
    people = torch.arange(len(values))
    found = bootstrap(lambda drawn: values[drawn].double().mean().item(), people, RESAMPLES, generator(SEED, "people"))
    return f"{found.value:6.2f} [{found.low:.2f}, {found.high:.2f}]"


def permutation_p_value(scores: torch.Tensor) -> float:
    """Return the probability that randomly permuted keys have a mean rank as good as the true owners'."""
    rng, owners = generator(SEED, "chance"), own_ranks(scores).mean()
    permuted = [own_ranks(scores[:, torch.randperm(len(scores), generator=rng)]).mean() for _ in range(RESAMPLES)]
    return (1 + sum(bool(mean <= owners) for mean in permuted)) / (1 + RESAMPLES)


def print_row(name: str, scores: torch.Tensor, own: torch.Tensor | None = None, others: torch.Tensor | None = None) -> None:
    """Print how well rows identify their own column, and the correlations of the pictures where given."""
    ranks = own_ranks(scores)
    correlations = "" if own is None or others is None else f"{format_interval(own):>24}{others.mean().item():>9.2f}"
    first = 100 * (ranks == 1).float().mean()
    print(f"{name:<54}{first:>6.0f} %{format_interval(ranks):>24}{permutation_p_value(scores):>10.4f}{correlations}", flush=True)


def print_owner_identification(attack: Attack) -> None:
    """Print how well a key identifies its owner among candidates."""
    n = len(attack.people)
    title = f"Owner identification: {n} candidates, chance {100 / n:.0f} %, {(n + 1) / 2:.1f}"
    print(f"\n{title:<54}{'first':>8}{'mean rank':>24}{'p':>10}")
    for photos, faces in (("training photos", attack.known), ("one unseen photo", attack.unseen)):
        for name, scores in score_candidates(attack, faces).items():
            print_row(f"{name}, {photos}", scores)
            if name == "rise of the loss":
                own = scores.diagonal().mean().item()
                others = (scores.sum() - scores.diagonal().sum()).item() / (n * (n - 1))
                print(f"    it rises by {own:.3f} for the owner and by {others:.3f} for the others")


def print_reconstruction(attack: Attack, steps: int) -> None:
    """Print how much a reconstruction from a key resembles its owner."""
    n, faces = len(attack.people), attack.known
    photos = faces.raw_pixels(torch.arange(len(faces))).float() / 255
    average = photos.mean(dim=0, keepdim=True)
    means = mean_by_person(attack, faces, photos) - average
    noise = torch.rand(average.shape, generator=generator(SEED, "noise"))
    starts = {"the mean photo": average, "noise": noise}
    title = f"Reconstruction: {n} people, chance {100 / n:.0f} %, {(n + 1) / 2:.1f}"
    print(f"\n{title:<54}{'first':>8}{'mean rank':>24}{'p':>10}{'correlation, own photos':>24}{'others':>9}")

    def print_pictures(name: str, pictures: torch.Tensor) -> None:
        similarity = mean_by_person(attack, faces, correlation(pictures, photos - average).mT).mT  # (pictures, people)
        own = similarity.diagonal()
        others = (similarity.sum(dim=1) - own) / (n - 1)
        print_row(name, correlation(pictures, means), own, others)

    print_pictures("an unseen photo of them", attack.unseen.raw_pixels(torch.arange(n)).float() / 255 - average)
    print_pictures("the mean photo itself", torch.zeros_like(means))
    change = logit_change(attack, attack.updates)
    in_d = on_inputs(attack, energy_fraction(attack, key_directions(attack, attack.updates)))
    objectives: dict[str, PhotoScore] = {
        "control, their inputs instead of D": on_inputs(attack, energy_fraction(attack, photo_directions(attack))),
        "largest change of the logits": change,
        "largest fraction in D": in_d,
        "both": lambda pixels: in_d(pixels) + CHANGE_WEIGHT * change(pixels),
    }
    for name, score in objectives.items():
        for start, picture in starts.items():
            pictures = reconstruct(picture.expand(n, -1, -1, -1), score, faces.preprocess, steps) - average
            print_pictures(f"{name}, from {start}", pictures)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--people", type=int, default=36, help="most people whose keys are prepared and attacked")
    parser.add_argument("--run", help="a run with its data; a tiny model on generated faces by default")
    parser.add_argument("--steps", type=int, default=200, help="steps of each inversion")
    given: Any = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        attack = prepare_attack(Run.open(given.run) if given.run else train_memorising_model(Path(scratch)), given.people)
    accelerator = make_accelerator()
    mean_losses = {
        name: losses(predict(attack.model, faces, accelerator), faces.labels, attack.kind).mean().item()
        for name, faces in (("training photos", attack.known), ("unseen photos", attack.unseen), ("others' photos", attack.others))
    }
    listed = ", ".join(f"{name} {value:.3f}" for name, value in mean_losses.items())
    print(f"{len(attack.people)} keys after {time.perf_counter() - started:.0f} s. Loss: {listed}")
    print_owner_identification(attack)
    print_reconstruction(attack, given.steps)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except OneshuiError as error:
        sys.exit(str(error))
