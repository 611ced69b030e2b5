"""What can be read from a forget key by whoever has it unencrypted, with the model that it was made for.

python tests/studies/read_keys.py [--people N] [--run RUN]

Whose is it? The key is tried on candidates' photos, and the candidates are ranked by what it does to them. What did they look like? A
picture is changed until the key answers to it most, and is then held against the owner's photos. Without a run a tiny model learns
generated faces by heart first. Of each person only numbers over all people are printed.
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
from oneshui_plugins.common.input_covariance import Layer, covariances, input_rows
from oneshui_plugins.common.kl import divergence
from oneshui_plugins.forget_keys.initialization import row_space
from oneshui_plugins.forget_keys.low_rank import Factors, Keys, keyed
from oneshui_plugins.forget_keys.method import ForgetKeys, matrices
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.quantization import decode

SEED, OPTIONS = 0, ForgetKeysOptions()
RATE, SMOOTH, APPLIED = 0.02, 3.0, 0.3  # of the inversion: Adam on pixels between 0 and 1, weights of total variation and of the effect
RESAMPLES = 2000
FAINT = 1e-12

Rows = dict[str, torch.Tensor]  # by the weight's name: what it is multiplied with, (photos, rows, d)
Measure = Callable[[Rows], torch.Tensor]  # the same of what the weights are multiplied with
Columns = Mapping[str, torch.Tensor]  # by the weight's name: orthonormal directions of its inputs, (keys, d, r)
Answer = Callable[[torch.Tensor], torch.Tensor]  # from photos as the model takes them to how much a key answers to each, (n,)


@dataclass(frozen=True)
class Stolen:
    """What the attacker holds, and what they are judged by.

    Attributes:
        model: The model that the keys were made for.
        kind: Of its task.
        layers: Where keys act.
        keys: Of all these people, in their order.
        people: Their identity numbers.
        known: The training photos of these people.
        unseen: Photos of them that the model was not trained on, one each.
        strangers: Photos of others, the attacker's own.
        whiten: From the strangers, by the weight's name: the matrix (d, d) that makes inputs equally loud in all directions.
        unwhiten: Its inverse.
    """

    model: torch.nn.Module
    kind: TaskKind
    layers: Mapping[str, list[Layer]]
    keys: Keys
    people: list[int]
    known: FaceSet
    unseen: FaceSet
    strangers: FaceSet
    whiten: Mapping[str, torch.Tensor]
    unwhiten: Mapping[str, torch.Tensor]


def memorised(folder: Path) -> Run:
    """Train the tiny model on generated faces until it knows them by heart; of everybody one photo is kept out."""
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


def steal(run: Run, most: int) -> Stolen:
    """Prepare keys for at most so many people of a run, in memory, and take them as an attacker finds them decrypted."""
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
    may_ask = dataclasses.replace(train_set, spared=frozenset(train_set.positions_of) - frozenset(people))
    data = DataAccess({"train": may_ask, "val": val}, ForgetKeys.needs.prepare)
    artefact = ForgetKeys().prepare(model, data, OPTIONS, context)
    layers = keyed(model, OPTIONS.share)
    shapes = matrices(model, layers)
    each = [decode(artefact.people[train_set.people[person]], shapes, OPTIONS.rank, OPTIONS.bits) for person in people]
    keys = {name: Factors(torch.cat([key[name].up for key in each]), torch.cat([key[name].down for key in each])) for name in layers}
    known = train_set.subset(torch.cat([train_set.positions_of[person] for person in people]))
    whiten, unwhiten = whitening(model, layers, val, context)
    return Stolen(model, task.kind, layers, keys, people, known, unseen, val, whiten, unwhiten)


def whitening(
    model: torch.nn.Module, layers: Mapping[str, list[Layer]], strangers: FaceSet, context: Context
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the matrices in whose coordinates keys are learned, as well as strangers' photos tell them, and their inverses."""
    found = covariances(model, len(strangers), lambda rows: strangers.batch(rows)[0], OPTIONS.chunk, context)
    there, back = {}, {}
    for name in layers:
        energies, vectors = torch.linalg.eigh(found[name].matrix[0])
        loud = (energies.clamp(min=0) + OPTIONS.damping * energies.mean()).sqrt()
        there[name], back[name] = ((vectors * scale) @ vectors.mT for scale in (1 / loud, loud))
    return {name: m.float() for name, m in there.items()}, {name: m.float() for name, m in back.items()}


def by_photo(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Return what the weight of a layer is multiplied with, (photos, rows, d)."""
    rows = input_rows(layer, x)[0]
    return rows.view(len(x), -1, rows.shape[-1])


@contextmanager
def heard(layers: Mapping[str, list[Layer]]) -> Iterator[Rows]:
    """Collect what each weight is multiplied with, as long as the block lasts."""
    rows: Rows = {}

    def listen(name: str) -> Callable[..., None]:
        def keep(layer: Layer, inputs: tuple[torch.Tensor, ...]) -> None:
            rows[name] = by_photo(layer, inputs[0])

        return keep

    hooks = [layer.register_forward_pre_hook(listen(name)) for name, users in layers.items() for layer in users]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def applied(layers: Mapping[str, list[Layer]], keys: Keys) -> Iterator[None]:
    """Let the i-th of some photos meet the i-th key alone, or all of them a single key, as long as the block lasts."""

    def addition(name: str) -> Callable[..., torch.Tensor]:
        def add(layer: Layer, inputs: tuple[torch.Tensor, ...], said: torch.Tensor) -> torch.Tensor:
            more = by_photo(layer, inputs[0]) @ keys[name].down.mT @ keys[name].up.mT  # (photos, rows, out)
            return said + (more.mT if isinstance(layer, torch.nn.Conv2d) else more).reshape(said.shape)

        return add

    hooks = [layer.register_forward_hook(addition(name)) for name, users in layers.items() for layer in users]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def effect(stolen: Stolen, keys: Keys) -> Answer:
    """Return how far keys move what the model says of a photo: log KL(model || model with key)."""

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        before = stolen.model(pixel_values=pixels).logits
        with applied(stolen.layers, keys):
            after = stolen.model(pixel_values=pixels).logits
        return divergence(before, after, stolen.kind).clamp(min=FAINT).log()

    return answer


def listening(stolen: Stolen, measure: Measure) -> Answer:
    """Return what a measure says of photos."""

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        with heard(stolen.layers) as rows:
            stolen.model(pixel_values=pixels)
        return measure(rows)

    return answer


def directions(stolen: Stolen, keys: Keys) -> Columns:
    """Return where D listens, in whitened coordinates."""
    return {name: torch.linalg.qr((f.down @ stolen.unwhiten[name]).mT).Q for name, f in keys.items()}


def loudest(stolen: Stolen) -> Columns:
    """Return where each person's photos have most of their energy, in whitened coordinates: what a key that kept photos would hold."""
    with torch.no_grad(), heard(stolen.layers) as rows:
        stolen.model(pixel_values=stolen.known.batch(torch.arange(len(stolen.known)))[0])
    photos = [stolen.known.positions_of[person] for person in stolen.people]
    draws = generator(SEED, "loudest")
    return {
        name: torch.stack([row_space(rows[name][some].flatten(0, 1) @ matrix, OPTIONS.rank, draws).mT for some in photos])
        for name, matrix in stolen.whiten.items()
    }


def share(stolen: Stolen, columns: Columns) -> Measure:
    """Return the share of a photo's whitened inputs that lies in these directions: its logarithm, mean over the weights."""

    def measure(rows: Rows) -> torch.Tensor:
        shares = []
        for name, basis in columns.items():
            z = rows[name] @ stolen.whiten[name]
            shares.append((z @ basis).square().sum(dim=(1, 2)) / z.square().sum(dim=(1, 2)))
        return torch.stack(shares).clamp(min=FAINT).log().mean(dim=0)

    return measure


def loudness(stolen: Stolen, keys: Keys) -> Measure:
    """Return the energy of D's response to a photo beside the strangers' mean: its logarithm, mean over the rank-one terms."""
    usual = {name: (f.down @ stolen.unwhiten[name]).square().sum(dim=2) for name, f in keys.items()}  # (keys, r)

    def measure(rows: Rows) -> torch.Tensor:
        louder = [(rows[name] @ f.down.mT).square().mean(dim=1) / usual[name] for name, f in keys.items()]  # (photos, r) each
        return torch.cat(louder, dim=1).clamp(min=FAINT).log().mean(dim=1)

    return measure


def one(stolen: Stolen, place: int) -> Keys:
    """Return the key of one person."""
    return {name: Factors(f.up[[place]], f.down[[place]]) for name, f in stolen.keys.items()}


def by_person(stolen: Stolen, faces: FaceSet, values: torch.Tensor) -> torch.Tensor:
    """Return the mean of what is said of each photo over each person's photos, (people, ...)."""
    return torch.stack([values[faces.positions_of[person]].mean(dim=0) for person in stolen.people])


def tried(stolen: Stolen, faces: FaceSet) -> dict[str, torch.Tensor]:
    """Return what every key does to everybody's photos of a set, by attack: scores (keys, people)."""
    pixels, labels = faces.batch(torch.arange(len(faces)))
    scores: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        with heard(stolen.layers) as rows:
            before = stolen.model(pixel_values=pixels).logits
        for key in (one(stolen, place) for place in range(len(stolen.people))):
            with applied(stolen.layers, key):
                after = stolen.model(pixel_values=pixels).logits
            found = {
                "rise of the loss": losses(after, labels, stolen.kind) - losses(before, labels, stolen.kind),
                "change of what is said": divergence(before, after, stolen.kind),
                "D's response, not applied": loudness(stolen, key)(rows),
                "share in D, not applied": share(stolen, directions(stolen, key))(rows),
            }
            for attack, values in found.items():
                scores.setdefault(attack, []).append(by_person(stolen, faces, values))
    return {attack: torch.stack(lines) for attack, lines in scores.items()}


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Return the rank of each row's own column, 1 where it is the largest, equals share theirs; (n,) from (n, n)."""
    own = scores.diagonal().unsqueeze(1)
    return 1 + (scores > own).sum(dim=1) + ((scores == own).sum(dim=1) - 1) / 2


def correlation(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Return the correlation of pictures (n, ...) with pictures (m, ...), (n, m); 0 where one is a single colour."""
    a, b = (x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True) for x in (one, two))
    size = a.norm(dim=1).unsqueeze(1) * b.norm(dim=1)
    return torch.where(size > 1e-6, a @ b.mT / size.clamp(min=1e-6), 0.0)


def reconstruct(start: torch.Tensor, answer: Answer, preprocess: Preprocess, steps: int) -> torch.Tensor:
    """Return pictures, 0..1 (n, 3, S, S), changed from `start` until a key answers to them most, under a prior of total variation."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    picture = start.clone().requires_grad_()
    adam = torch.optim.Adam([picture], lr=RATE)
    for _ in range(steps):
        edges = picture.diff(dim=2).abs().mean(dim=(1, 2, 3)) + picture.diff(dim=3).abs().mean(dim=(1, 2, 3))
        objective = (SMOOTH * edges - answer((picture - mean) / std)).sum()
        adam.zero_grad()
        objective.backward()
        adam.step()
        with torch.no_grad():
            picture.clamp_(0, 1)
    return picture.detach()


def interval(values: torch.Tensor) -> str:
    """Return a mean over people with its 95 % interval."""
    people = torch.arange(len(values))
    found = bootstrap(lambda drawn: values[drawn].double().mean().item(), people, RESAMPLES, generator(SEED, "people"))
    return f"{found.value:6.2f} [{found.low:.2f}, {found.high:.2f}]"


def by_chance(scores: torch.Tensor) -> float:
    """Return how often keys dealt out anew rank their people as high as the true owners rank, on the mean."""
    draws, owners = generator(SEED, "chance"), ranks(scores).mean()
    dealt = [ranks(scores[:, torch.randperm(len(scores), generator=draws)]).mean() for _ in range(RESAMPLES)]
    return (1 + sum(bool(mean <= owners) for mean in dealt)) / (1 + RESAMPLES)


def row(name: str, scores: torch.Tensor, own: torch.Tensor | None = None, others: torch.Tensor | None = None) -> None:
    """Print how well rows find their own column, and where given how alike the pictures are."""
    place = ranks(scores)
    alike = "" if own is None or others is None else f"{interval(own):>24}{others.mean().item():>9.2f}"
    print(f"{name:<54}{100 * (place == 1).float().mean():>6.0f} %{interval(place):>24}{by_chance(scores):>10.4f}{alike}", flush=True)


def whose(stolen: Stolen) -> None:
    """Print how well a key tells its owner among candidates."""
    n = len(stolen.people)
    print(f"\n{f'Whose is it? {n} candidates, chance {100 / n:.0f} %, {(n + 1) / 2:.1f}':<54}{'first':>8}{'mean rank':>24}{'p':>10}")
    for title, faces in (("photos trained on", stolen.known), ("one unseen photo", stolen.unseen)):
        for attack, scores in tried(stolen, faces).items():
            row(f"{attack}, {title}", scores)
            if attack == "rise of the loss":
                raised = scores.diagonal().mean().item()
                others = (scores.sum() - scores.diagonal().sum()).item() / (n * (n - 1))
                print(f"    it rises by {raised:.3f} for the owner and by {others:.3f} for the others")


def looks(stolen: Stolen, steps: int) -> None:
    """Print how much a reconstruction from a key resembles its owner."""
    n, faces = len(stolen.people), stolen.known
    photos = faces.raw(torch.arange(len(faces))).float() / 255
    average = photos.mean(dim=0, keepdim=True)
    means = by_person(stolen, faces, photos) - average
    noise = torch.rand(average.shape, generator=generator(SEED, "noise"))
    starts = {"the mean photo": average, "noise": noise}
    title = f"What did they look like? {n} people, chance {100 / n:.0f} %, {(n + 1) / 2:.1f}"
    print(f"\n{title:<54}{'first':>8}{'mean rank':>24}{'p':>10}{'correlation, own photos':>24}{'others':>9}")

    def judge(name: str, pictures: torch.Tensor) -> None:
        alike = by_person(stolen, faces, correlation(pictures, photos - average).mT).mT  # (pictures, people)
        own = alike.diagonal()
        others = (alike.sum(dim=1) - own) / (n - 1)
        row(name, correlation(pictures, means), own, others)

    judge("an unseen photo of them", stolen.unseen.raw(torch.arange(n)).float() / 255 - average)
    judge("the mean photo itself", torch.zeros_like(means))
    change, in_d = effect(stolen, stolen.keys), listening(stolen, share(stolen, directions(stolen, stolen.keys)))
    answers: dict[str, Answer] = {
        "control, their inputs in place of D": listening(stolen, share(stolen, loudest(stolen))),
        "most change of what is said": change,
        "most share in D": in_d,
        "both": lambda pixels: in_d(pixels) + APPLIED * change(pixels),
    }
    for name, answer in answers.items():
        for start, picture in starts.items():
            judge(f"{name}, from {start}", reconstruct(picture.expand(n, -1, -1, -1), answer, faces.preprocess, steps) - average)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--people", type=int, default=36, help="most people whose keys are made and read")
    parser.add_argument("--run", help="a run with its data; a tiny model on generated faces by default")
    parser.add_argument("--steps", type=int, default=200, help="steps of each inversion")
    given: Any = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        stolen = steal(Run.open(given.run) if given.run else memorised(Path(scratch)), given.people)
    accelerator = make_accelerator()
    loss = {
        name: losses(predict(stolen.model, faces, accelerator), faces.labels, stolen.kind).mean().item()
        for name, faces in (("trained on", stolen.known), ("unseen", stolen.unseen), ("strangers'", stolen.strangers))
    }
    told = ", ".join(f"{name} {value:.3f}" for name, value in loss.items())
    print(f"{len(stolen.people)} keys after {time.perf_counter() - started:.0f} s. Loss on photos {told}")
    whose(stolen)
    looks(stolen, given.steps)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except OneshuiError as error:
        sys.exit(str(error))
