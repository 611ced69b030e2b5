"""What an attacker with both models identifies in releases that try to hide who was forgotten, and what each release costs.

python tests/studies/safer_release.py --run ORIGINAL --artefact FOLDER --vault FOLDER [--oracle ORACLE] [--draws N] [--json FILE]

A release merges the keys of K random training identities into the original. Variants add something that should hide them: random low-rank
updates in the directions to which unseen identities are insensitive, decoy keys of unseen identities (val), keys of retain identities who
made no request, or rounding of all weights. For each, both difference attacks of docs/metrics.md rank all training, val and test
identities; and the scores on the photos of all other training identities (retain) and of test identities are compared with the original's.
Only statistics over draws are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.methods import Artefact, Context, generator
from oneshui_hf.metrics.attacks.output_difference import output_difference
from oneshui_hf.metrics.attacks.quantization import round_weights
from oneshui_hf.metrics.attacks.weight_difference import row_spaces, weight_difference_scores
from oneshui_hf.metrics.functional import score_of
from oneshui_hf.metrics.owner_identification import batch_share, person_means, person_ranks
from oneshui_hf.models.layer_inputs import layer_energies
from oneshui_hf.models.load import load_model
from oneshui_hf.models.outputs import predict
from oneshui_hf.runs import Run
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.run_data import open_data
from oneshui_plugins.forget_keys.batches import TrainingData
from oneshui_plugins.forget_keys.low_rank import LowRankUpdate, Updates, merge, target_layers
from oneshui_plugins.forget_keys.method import ForgetKeys, matrix_shapes
from oneshui_plugins.forget_keys.preconditioner import Preconditioner, estimate_preconditioner
from oneshui_plugins.forget_keys.quantization import dequantize

SEED, METHOD = 0, "forget-keys"
LENGTHS = (0.1, 0.3, 1.0)  # of each of 16 random updates, as a multiple of a key's
PHOTOS_A_PERSON = 6  # of each candidate in the attack on weights, at most
COLUMNS = ("rank, outputs", "share, outputs", "rank, weights", "share, weights", "forget", "retain", "test")


@dataclass(frozen=True, eq=False)
class Candidates:
    """Photos of training, val and test identities.

    Attributes:
        sets: The photos by set.
        logits: Of the original, by set.
        inputs: Preprocessed photos for the attack on weights, (n, 3, S, S).
        input_identities: The person on each of these, (n,).
    """

    sets: Mapping[str, FaceSet]
    logits: Mapping[str, torch.Tensor]
    inputs: torch.Tensor
    input_identities: torch.Tensor


@dataclass(frozen=True, eq=False)
class Study:
    """The original, its keys, and the candidates.

    Attributes:
        model: The original.
        context: For the device and the task.
        keys: The updates of each training identity, by its number.
        strength: The factor of the updates.
        preconditioner: Estimated on unseen identities (val).
        candidates: The attacker's photos.
    """

    model: nn.Module
    context: Context
    keys: Mapping[int, Updates]
    strength: float
    preconditioner: Preconditioner
    candidates: Candidates

    def release(self, forgotten: Sequence[int], added: Sequence[Updates] = ()) -> nn.Module:
        """Return the original with the keys of these identities and further updates."""
        return merge(self.model, [*(self.keys[identity] for identity in forgotten), *added], self.strength)

    def random_updates(self, count: int, length: float, rng: torch.Generator) -> list[Updates]:
        """Return updates in random directions, those to which unseen identities are insensitive being likelier, of the length of keys."""
        draw: list[Updates] = []
        for _ in range(count):
            raw = {
                name: LowRankUpdate(torch.randn(up, generator=rng), torch.randn(down, generator=rng))
                for name, (up, down) in self._shapes().items()
            }
            draw.append(self._with_length_of_keys(self.preconditioner.apply(raw), length))
        return draw

    def decoy(self, identity: int, rng: torch.Generator) -> Updates:
        """Return a key of an unseen identity (val): its whitened inputs as a real key would respond to, and the outputs of a real key."""
        val = self.candidates.sets["val"]
        positions = val.positions_of[identity][:PHOTOS_A_PERSON]
        directions = mean_inputs(self.model, self._shapes(), val.batch(positions)[0])
        owner = self.keys[list(self.keys)[int(torch.randint(len(self.keys), (), generator=rng))]]
        updates = {}
        for name, rows in directions.items():
            rank = min(len(rows), owner[name].up.shape[-1])
            updates[name] = LowRankUpdate(owner[name].up[..., :rank], (rows[:rank] @ self.preconditioner.down[name])[None])
        return self._with_length_of_keys(updates, 1.0)

    def _shapes(self) -> dict[str, tuple[torch.Size, torch.Size]]:
        any_key = next(iter(self.keys.values()))
        return {name: (update.up.shape, update.down.shape) for name, update in any_key.items()}

    @cached_property
    def _key_lengths(self) -> dict[str, float]:
        """The mean Frobenius norm of the keys, by the weight's name."""
        return {name: fmean(float(key[name].delta_weight().norm()) for key in self.keys.values()) for name in self._shapes()}

    def _with_length_of_keys(self, updates: Updates, length: float) -> Updates:
        """Return updates whose norm in every layer is `length` times the mean norm of the keys."""
        scaled = {}
        for name, update in updates.items():
            factor = length * self._key_lengths[name] / update.delta_weight().norm().clamp(min=1e-12)
            scaled[name] = LowRankUpdate(update.up * factor, update.down)
        return scaled

    def measure(self, release: nn.Module, forgotten: Sequence[int]) -> dict[str, float]:
        """Return mean rank and batch share of both attacks, and the changes of the scores on forget, retain and test, in points."""
        found, accelerator = self.candidates, self.context.accelerator
        kind, people = self.context.task.kind, torch.tensor(list(forgotten))
        logits = {name: predict(release, faces, accelerator) for name, faces in found.sets.items()}
        rises = [output_difference(logits[name], found.logits[name], faces.labels, kind).loss_rise for name, faces in found.sets.items()]
        outputs = _ranks(torch.cat(rises), torch.cat([faces.identities for faces in found.sets.values()]), people)
        spaces = row_spaces(release.state_dict(), self.model.state_dict())
        energies = layer_energies(self.model, spaces, found.inputs.split(64), accelerator.device)
        weights = _ranks(weight_difference_scores(energies), found.input_identities, people)
        is_forgotten = torch.isin(found.sets["train"].identities, people)
        changes = {
            name: self._change(logits[part][rows], found.logits[part][rows], found.sets[part].labels[rows])
            for name, part, rows in (
                ("forget", "train", is_forgotten),
                ("retain", "train", ~is_forgotten),
                ("test", "test", slice(None)),
            )
        }
        return dict(zip(COLUMNS, (*outputs, *weights, *changes.values()), strict=True))

    def _change(self, after: torch.Tensor, before: torch.Tensor, labels: torch.Tensor) -> float:
        kind = self.context.task.kind
        return score_of(after, labels, kind) - score_of(before, labels, kind)


def _ranks(scores: torch.Tensor, identities: torch.Tensor, forgotten: torch.Tensor) -> tuple[float, float]:
    """Return the mean rank of the forgotten people, and the share of the highest scores that is of them."""
    is_forgotten = torch.isin(identities, forgotten)
    own, others = (person_means(scores[side], identities[side]) for side in (is_forgotten, ~is_forgotten))
    return person_ranks(own, others).mean().item(), batch_share(own, others)


def mean_inputs(model: nn.Module, layers: Mapping[str, object], photos: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the mean input of each linear layer for each photo, centred over the photos of all, (n, in), by the weight's name."""
    modules, found = dict(model.named_modules()), dict[str, torch.Tensor]()

    def record(name: str) -> Callable[..., None]:
        return lambda layer, inputs: found.__setitem__(name, inputs[0].detach().reshape(len(photos), -1, inputs[0].shape[-1]).mean(1))

    chosen = {name: modules[name.removesuffix(".weight")] for name in layers}
    hooks = [m.register_forward_pre_hook(record(name)) for name, m in chosen.items() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        model(pixel_values=photos)
    for hook in hooks:
        hook.remove()
    return found


def open_study(run: Run, artefact: Path, vault: Path | None) -> Study:
    """Load the original, its keys and its photos."""
    accelerator = make_accelerator()
    sets = open_data(run, accelerator).sets
    model, _, task = load_model(run.path, accelerator.device)
    stored = Artefact.load(artefact, METHOD, run.weights, vault=vault)
    return make_study(model, sets, stored, Context(task, SEED, accelerator, request_size=1))


def make_study(model: nn.Module, sets: Mapping[str, FaceSet], artefact: Artefact, context: Context) -> Study:
    """Return the study of a model with prepared keys."""
    options = ForgetKeys.apply_options(METHOD, artefact.options, {})
    model.requires_grad_(False)
    layers = target_layers(model, options.target_fraction)
    shapes = matrix_shapes(model, layers)
    train, val = sets["train"], sets["val"]
    names = {identity: train.people[identity] for identity in train.positions_of if train.people[identity] in artefact.people}
    keys = {identity: dequantize(artefact.people[name], shapes, options.rank, options.bits) for identity, name in names.items()}
    unused: Any = None
    data = TrainingData(val, val, unused, unused, unused, options, context.task, SEED)  # the preconditioner reads photos only
    chosen = {name: sets[name] for name in ("train", "val", "test")}
    logits = {name: predict(model, faces, context.accelerator) for name, faces in chosen.items()}
    few = {name: torch.cat([at[:PHOTOS_A_PERSON] for at in faces.positions_of.values()]) for name, faces in chosen.items()}
    inputs = torch.cat([chosen[name].batch(positions)[0] for name, positions in few.items()])
    input_identities = torch.cat([chosen[name].identities[positions] for name, positions in few.items()])
    candidates = Candidates(chosen, logits, inputs, input_identities)
    return Study(model, context, keys, options.strength, estimate_preconditioner(model, layers, data, context), candidates)


def variants(study: Study, forgotten: Sequence[int], rng: torch.Generator) -> Iterator[tuple[str, nn.Module]]:
    """Yield each kind of release: its name and the model."""
    plain = study.release(forgotten)
    yield "keys", plain
    for length in LENGTHS:
        release = study.release(forgotten, study.random_updates(16, length, rng))
        yield f"keys + 16 random updates, {length:g} of a key's length", release
    val = list(study.candidates.sets["val"].positions_of)
    yield f"keys + decoy keys of all {len(val)} val identities", study.release(forgotten, [study.decoy(i, rng) for i in val])
    others = [identity for identity in study.keys if identity not in set(forgotten)]
    for count in (5, 20):
        added = [others[i] for i in torch.randperm(len(others), generator=rng)[:count].tolist()]
        yield f"keys + keys of {count} retain identities", study.release([*forgotten, *added])
    for precision in ("bf16", "int8"):
        yield f"keys, rounded to {precision}", round_weights(plain, precision)


def main() -> None:
    """Print a table of all releases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--artefact", type=Path, required=True)
    parser.add_argument("--vault", type=Path)
    parser.add_argument("--oracle")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--draws", type=int, default=10, help="Random sets of forget identities of each size.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    study = open_study(Run.open(given.run), given.artefact, given.vault)
    rows: dict[str, dict[str, float]] = {}
    for size in given.sizes:
        found: dict[str, list[dict[str, float]]] = {}
        for draw in range(given.draws):
            rng = generator(SEED, "release", size, draw)
            people = list(study.keys)
            forgotten = [people[i] for i in torch.randperm(len(people), generator=rng)[:size].tolist()]
            for name, release in variants(study, forgotten, rng):
                found.setdefault(name, []).append(study.measure(release, forgotten))
        rows |= {f"K = {size}: {name}": {c: fmean(row[c] for row in of) for c in COLUMNS} for name, of in found.items()}
    if given.oracle:
        oracle = load_model(Run.open(given.oracle).path, study.context.device)[0]
        people = study.candidates.sets["train"].people
        names = set(open_forget_set(Run.open(given.run)))
        forgotten = [i for i in study.candidates.sets["train"].positions_of if people[i] in names]
        rows[f"K = {len(forgotten)}: keys"] = study.measure(study.release(forgotten), forgotten)
        rows[f"K = {len(forgotten)}: oracle"] = study.measure(oracle, forgotten)
    candidates = sum(len(faces.positions_of) for faces in study.candidates.sets.values())
    print(f"{candidates} candidates; {given.draws} draws. Rank: 1 is found at once. Share: of the K highest scores. Changes in points.")
    print("| release | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[c]:.2f}" if "share" in c else f"{row[c]:.1f}" for c in COLUMNS) + " |")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def open_forget_set(run: Run) -> list[str]:
    """Return the names of the forget identities of a run's split."""
    from oneshui_hf.data.split import load_split
    from oneshui_hf.runs import SPLIT

    return list(load_split(run.path / SPLIT).forget)


if __name__ == "__main__":
    main()
