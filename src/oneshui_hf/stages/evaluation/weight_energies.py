"""The energies of photos in the difference of a model's weights to its original's: measured once and stored, like predictions.

RUN/predictions/weight-difference.safetensors contains the energies of the photos of retain, forget, test and support in each linear layer
that differs, see `models.layer_inputs`. It is sealed as predictions are, so the metrics can be computed again where the weights are gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from ...data.face_set import FaceSet
from ...errors import OneshuiError
from ...files import write_bytes
from ...metrics.attacks.weight_difference import changed_numbers, row_spaces
from ...metrics.comparison import CANDIDATES, NotRun, WeightEnergies
from ...models.layer_inputs import layer_energies
from ...models.load import load_model
from ...processes import on_main
from ...reporting import SILENT, Reporter
from ...runs import PREDICTIONS, Run, dump_json
from ...seeding import generator
from .predictions import Tensors, load_sealed, predictions_key, sealed_bytes, sealed_file

NAME = "weight-difference"
MOST_RETAIN_PHOTOS = 5000  # more would make the attack slower than everything else; people are drawn until their photos are this many
OTHER_LAYERS = NotRun("model and original have other layers or shapes")
NO_LAYER = NotRun("no linear layer differs between model and original")
MISSING = NotRun("the weights of the model or of its original, or the photos, are no longer there")
OUTCOMES = (None, OTHER_LAYERS, NO_LAYER)  # stored by number


@dataclass(frozen=True)
class WeightEnergyMeter:
    """Loads stored energies and measures the missing ones. Data and models are loaded only if something is missing.

    Attributes:
        original: The original model, if it is known.
        sets: Opens the photos, by set.
        accelerator: For the device. One process measures.
        batch_size: Photos per forward pass.
        reporter: For progress.
    """

    original: Run | None
    sets: Callable[[], Mapping[str, FaceSet]]
    accelerator: Accelerator
    batch_size: int
    reporter: Reporter = SILENT

    def of(self, run: Run | None) -> WeightEnergies | NotRun | None:
        """Return the energies of all candidates' photos in the difference of a run's weights to its original's, or why there are none.

        Args:
            run: The model.

        Returns:
            None without a run or an original.
        """
        original = self.original
        if run is None or original is None:
            return None
        key = _key(run, original, self.batch_size)
        stored = on_main(self.accelerator, lambda: load_sealed(run.path / PREDICTIONS, NAME, 0, key))
        if stored is not None:
            return _from_tensors(stored)
        if not on_main(self.accelerator, lambda: run.has_weights and original.has_weights):
            return MISSING

        def measure_and_store() -> Tensors:
            tensors = _measure(run, original, faces, self.accelerator.device, self.batch_size, self.reporter)
            write_bytes(sealed_file(run.path / PREDICTIONS, NAME), sealed_bytes(tensors, NAME, 0, key), private=True)
            return tensors

        try:
            faces = {name: self.sets()[name] for name in CANDIDATES}
            return _from_tensors(on_main(self.accelerator, measure_and_store))
        except OneshuiError:  # the weights are damaged, or the photos have moved; all other metrics are in the predictions
            return MISSING


def can_measure_weight_energies(run: Run | None, original: Run | None, batch_size: int) -> bool:
    """Return whether the energies of a run are stored, or the weights to measure them exist."""
    if run is None or original is None:
        return False
    if run.has_weights and original.has_weights:
        return True
    return load_sealed(run.path / PREDICTIONS, NAME, 0, _key(run, original, batch_size)) is not None


def _key(run: Run, original: Run, batch_size: int) -> str:
    """Return the hash of what the energies depend on."""
    parts = [predictions_key(run, batch_size), original.record.weights, original.record.seed, MOST_RETAIN_PHOTOS]
    return hashlib.sha256(dump_json(parts)).hexdigest()


def _measure(run: Run, original: Run, sets: Mapping[str, FaceSet], device: torch.device, batch_size: int, reporter: Reporter) -> Tensors:
    model = load_model(original.require_complete().path, device)[0]
    before, after = (one.state_dict() for one in (model, load_model(run.require_complete().path)[0]))
    before = {name: tensor.cpu() for name, tensor in before.items()}
    try:
        spaces, changed = row_spaces(after, before), changed_numbers(after, before)
    except OneshuiError:
        return _to_tensors({}, sets, 0, OTHER_LAYERS)
    retain = sets["retain"]
    drawn = retain.subset(draw_people(retain.identities, MOST_RETAIN_PHOTOS, generator(original.record.seed, "weight difference")))
    candidates = dict(sets) | {"retain": drawn}
    batches = _Batches(tuple(candidates.values()), batch_size, reporter, f"Comparing the weights of {run.path.name}")
    energies = layer_energies(model, spaces, batches, device) if spaces else {}
    left_out = sum(count for name, count in changed.items() if name not in energies)
    return _to_tensors(energies, candidates, left_out, None if energies else NO_LAYER)


def draw_people(identities: torch.Tensor, photos: int, rng: torch.Generator) -> torch.Tensor:
    """Return the positions of all photos of people drawn at random, in order; of all people if they have no more photos than `photos`.

    Args:
        identities: The person on each photo, (n,).
        photos: About how many photos: the last drawn person may exceed it.
        rng: Draws the people.
    """
    if len(identities) <= photos:
        return torch.arange(len(identities))
    people, index, sizes = identities.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(people), generator=rng)
    ends = sizes[order].cumsum(0)
    is_drawn = torch.zeros(len(people), dtype=torch.bool)
    is_drawn[order] = ends - sizes[order] < photos
    return is_drawn[index].nonzero().squeeze(1)


@dataclass(frozen=True)
class _Batches:
    """The preprocessed photos of some sets in batches, which can be iterated over several times."""

    sets: tuple[FaceSet, ...]
    batch_size: int
    reporter: Reporter
    label: str

    def __iter__(self) -> Iterator[torch.Tensor]:
        parts = [(faces, part) for faces in self.sets if len(faces) for part in torch.arange(len(faces)).split(self.batch_size)]
        for faces, part in self.reporter.track(parts, self.label):
            yield faces.batch(part)[0]


def _to_tensors(energies: Mapping[str, torch.Tensor], sets: Mapping[str, FaceSet], left_out: int, outcome: NotRun | None) -> Tensors:
    numbers = [torch.full((len(sets[name]),), number) for number, name in enumerate(CANDIDATES)]
    named = {f"layer/{name}": of_layer for name, of_layer in energies.items()}
    return named | {
        "sets": torch.cat(numbers),
        "identities": torch.cat([sets[name].identities for name in CANDIDATES]),
        "numbers_left_out": torch.tensor([left_out]),
        "outcome": torch.tensor([OUTCOMES.index(outcome)]),
    }


def _from_tensors(tensors: Tensors) -> WeightEnergies | NotRun:
    if (outcome := OUTCOMES[int(tensors["outcome"])]) is not None:
        return outcome
    layers = {name.removeprefix("layer/"): tensor for name, tensor in tensors.items() if name.startswith("layer/")}
    return WeightEnergies(layers, tensors["sets"], tensors["identities"], int(tensors["numbers_left_out"]))
