"""The attacks of `--attacks all`: those that need the weights and the photos, and more time than the others.

Every process does the same work on its own copies, except for predictions, which they share; the result does not depend on their number. A
part that cannot be run is listed with its reason, a sentence that contains no path and no name. Nothing but numbers is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from ...data.face_set import FaceSet
from ...data.schema import TaskKind
from ...errors import OneshuiError
from ...metrics.attack_names import FURTHER_ATTACKS
from ...metrics.attack_suite import attack_entry, run_attacks
from ...metrics.attacks.few_shot_relearning import RATES, STEPS, best_for_attacker, excess_entry, logits_after_fine_tuning, relearning_entry
from ...metrics.attacks.inversion import MAX_PARAMETERS, inversion_entry, reconstruct, weight_difference
from ...metrics.attacks.quantization import PRECISIONS, round_weights, update_kept
from ...metrics.attacks.representation import NEIGHBOURS, layer_features, linear_cka, neighbour_overlap
from ...metrics.comparison import Comparison, Predictions, PredictionsBySet, Settings
from ...metrics.functional import gap_closure
from ...metrics.measure import to_json
from ...metrics.score_intervals import gap_closure_interval
from ...models.load import load_model
from ...models.outputs import losses, predict
from ...processes import single_thread
from ...reporting import Reporter
from ...runs import Run
from ...seeding import generator
from ...sets import ATTACKED, COMPARED
from .reference_models import ReferenceModels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_PHOTOS = 1000  # of a set that are predicted with rounded weights, or whose features are compared: whole people, drawn at random
MAX_PEOPLE = 20  # whose support image a copy of the model is trained on
MAX_CANDIDATES = 100  # people that a reconstruction is compared with
PHOTOS_PER_CANDIDATE = 5
ATTACK_NUMBERS = ("auc", "interval", "auc_either_way")  # of an attack on rounded weights


class _NotRunError(Exception):
    """The reason why an attack is not run, as a sentence without paths and names."""


def further_attacks(
    run: Run,
    compared: ReferenceModels,
    predictions: Comparison,
    sets: Callable[[], Mapping[str, FaceSet]],
    kind: TaskKind,
    settings: Settings,
    accelerator: Accelerator,
    batch_size: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Return the `further` entry of `metrics.json`: the numbers of each attack, and `not_run`, the reasons of the others.

    Args:
        run: The attacked model.
        compared: Its original and its oracle, as far as they are known.
        predictions: Predictions of these models.
        sets: Opens the photos, by set. Where that raises OneshuiError, no attack is run.
        kind: What the models predict.
        settings: Of intervals and attacks, and the seed.
        accelerator: For the device, and to share predictions.
        batch_size: Photos per forward pass.
        reporter: For progress, and for what cannot be opened.
    """
    try:
        photos = sets()
    except OneshuiError as error:
        reporter.warn(f"The further attacks are not run. {error}")
        return dict.fromkeys(FURTHER_ATTACKS) | {"not_run": dict.fromkeys(FURTHER_ATTACKS, "The photos cannot be read.")}
    models = {"unlearned": run, "original": compared.original, "oracle": compared.oracle}
    attacks = _FurtherAttacks(models, predictions, photos, kind, settings, accelerator, batch_size, reporter)
    entry: dict[str, Any] = {}
    not_run: dict[str, str] = {}
    for name in reporter.track(FURTHER_ATTACKS, "Running further attacks"):
        try:
            entry[name] = getattr(attacks, name)()
        except _NotRunError as reason:
            entry[name], not_run[name] = None, str(reason)
    return to_json(entry | {"not_run": not_run})


@dataclass(frozen=True, eq=False)
class _FurtherAttacks:
    """The attacks, on one model and those that it is compared with. A model is loaded once, when it is needed."""

    runs: Mapping[str, Run | None]
    stored: Comparison
    sets: Mapping[str, FaceSet]
    kind: TaskKind
    settings: Settings
    accelerator: Accelerator
    batch_size: int
    reporter: Reporter
    loaded: dict[str, PreTrainedModel] = field(default_factory=dict)

    # ---------------------------------------------------------------- attacks

    def few_shot_relearning(self) -> dict[str, Any]:
        """Train copies of model and oracle on each person's support image, and measure the person's other photos."""
        if self._is_same("unlearned", "original"):
            raise _NotRunError("The model is the original, which has forgotten nothing.")
        original, forget, support = self._stored("original")["forget"], self.sets["forget"], self.sets["support"]
        people = [person for person in forget.positions_of if person in support.positions_of][:MAX_PEOPLE]
        if not people:
            raise _NotRunError("No forget identity has a support image and other photos.")
        positions = torch.cat([forget.positions_of[person] for person in people])

        def after(role: str) -> torch.Tensor:
            model, device = self._model(role), self.accelerator.device
            logits = []
            for person in self.reporter.track(people, "Training on one photo of a person"):
                others = [forget.batch(part, device)[0] for part in forget.positions_of[person].split(self.batch_size)]
                pixels, labels = support.batch(support.positions_of[person], device)
                by_rate = [logits_after_fine_tuning(model, pixels, labels, others, self.kind, rate) for rate in RATES]
                logits.append(torch.cat(by_rate))
            return torch.cat(logits, dim=1)

        lost = _take(original, positions).losses
        roles = ["unlearned", *(["oracle"] if self._has_weights("oracle") and not self._is_same("unlearned", "oracle") else [])]
        both, entry = {}, {}
        for role in roles:
            before, predicted = _take(self._stored(role)["forget"], positions), after(role)
            best = best_for_attacker(before, predicted, self.kind)
            both[role] = before, predicted[best]
            rate, steps = divmod(best, len(STEPS))
            entry[role] = {"lr": RATES[rate], "steps": STEPS[steps]} | relearning_entry(*both[role], lost, self.kind, self.settings)
        excess = excess_entry(*both["unlearned"], *both["oracle"], self.kind, self.settings) if "oracle" in both else None
        return {"people": len(people), "oracle": None, "excess": excess} | entry

    def quantization(self) -> dict[str, Any]:
        """Measure the model, the original and the oracle with rounded weights, on the same photos."""
        names = [*COMPARED, *(["val"] if self.stored.references else [])]
        taken = {name: self._sample(name) for name in names}
        references = [self._taken(of, taken) for of in self.stored.references]
        models = {role: self._model(role) for role in ("unlearned", "original", "oracle") if self._has_weights(role)}
        if "unlearned" not in models:
            self._model("unlearned")  # raises the reason
        stored = {role: self._taken(self._stored(role), taken) for role in models}
        entry: dict[str, Any] = {"float32": self._rounded_entry(stored, references)}
        for precision in self.reporter.track(PRECISIONS, "Predicting with rounded weights"):
            predicted = {role: self._predict(round_weights(model, precision), taken) for role, model in models.items()}
            entry[precision] = self._rounded_entry(predicted, references)
            if "original" in models:
                entry[precision]["update_kept"] = update_kept(models["unlearned"], models["original"], precision)
        return entry

    def inversion(self) -> dict[str, Any]:
        """Reconstruct the forgotten photo from the weights, and rank people by their resemblance to it."""
        forget = self.sets["forget"]
        if (people := len(forget.positions_of)) != 1:
            raise _NotRunError(f"The forget set has {people} people, whose photos are mixed in the difference of the weights.")
        model, original = self._model("unlearned"), self._model("original")
        if (size := original.num_parameters()) > MAX_PARAMETERS:
            raise _NotRunError(f"The model has {size:,} parameters; the attack is run on models of at most {MAX_PARAMETERS:,}.")
        difference = weight_difference(model, original)
        if not difference:
            reason = "have different parameters" if difference is None else "are equal"
            raise _NotRunError(f"The model and the original {reason}, so there is no difference of weights.")
        [person], support = forget.positions_of, self.sets["support"]
        photos, identities = self._candidates(person)
        if person not in support.positions_of or len(identities.unique()) < 2:
            raise _NotRunError("There is no support image, or no other person with as many photos.")
        labels = support.labels[support.positions_of[person][:1]].to(self.accelerator.device)
        rng = generator(self.settings.seed, "inversion")
        with single_thread():  # a search amplifies rounding differences, and every process must find the same
            found = reconstruct(original, difference, labels, self.kind, support.preprocess, support.preprocess.size, rng)
        return inversion_entry(found, photos, identities, person)

    def representation(self) -> dict[str, Any]:
        """Compare the features of the model, and of the original, with those of the oracle."""
        if self._is_same("unlearned", "oracle"):
            raise _NotRunError("The model is the oracle.")
        self._model("oracle")
        roles = ["unlearned", *(["original"] if self._has_weights("original") and not self._is_same("unlearned", "original") else [])]
        entry: dict[str, Any] = {"k": NEIGHBOURS}
        for name in ATTACKED:
            positions = self._sample(name)
            oracle = self._features("oracle", name, positions)
            if not oracle:
                raise _NotRunError("The models return no hidden states, and have no linear head.")
            entry[name] = {
                role: {
                    "cka": [linear_cka(*pair) for pair in zip(features, oracle, strict=True)],
                    "neighbours": [neighbour_overlap(*pair) for pair in zip(features, oracle, strict=True)],
                }
                for role in roles
                for features in [self._features(role, name, positions)]
            }
        return entry

    # ---------------------------------------------------------------- models and photos

    def _is_same(self, first: str, second: str) -> bool:
        """Return whether two roles are of the same model."""
        runs = self.runs[first], self.runs[second]
        return None not in runs and len({run.record.weights for run in runs if run}) == 1

    def _has_weights(self, role: str) -> bool:
        run = self.runs[role]
        return run is not None and run.has_weights

    def _model(self, role: str) -> PreTrainedModel:
        """Load a model.

        Raises:
            _NotRunError: It is not known, or its weights are gone or damaged.
        """
        run = self.runs[role]
        name = "model" if role == "unlearned" else role
        if run is None:
            raise _NotRunError(f"The {name} is not known.")
        if not run.has_weights:
            raise _NotRunError(f"The weights of the {name} were not kept.")
        if role not in self.loaded:
            try:
                self.loaded[role] = load_model(run.require_complete().path, self.accelerator.device)[0]
            except OneshuiError as error:
                self.reporter.note(str(error))
                raise _NotRunError(f"The weights of the {name} cannot be read.") from None
        return self.loaded[role]

    def _stored(self, role: str) -> PredictionsBySet:
        """Return the stored predictions of a model.

        Raises:
            _NotRunError: The model is not known.
        """
        stored = {"unlearned": self.stored.model, "original": self.stored.original, "oracle": self.stored.oracle}[role]
        if stored is None:
            raise _NotRunError(f"The {role} is not known.")
        return stored

    def _sample(self, name: str) -> torch.Tensor:
        """Return the positions of at most `MAX_PHOTOS` photos of a set, all of each person, in order; at least one person's."""
        photos = list(self.sets[name].positions_of.values())
        order = torch.randperm(len(photos), generator=generator(self.settings.seed, "further attacks", name)).tolist()
        chosen: list[torch.Tensor] = []
        for person in order:
            if chosen and sum(map(len, chosen)) + len(photos[person]) > MAX_PHOTOS:
                break
            chosen.append(photos[person])
        return torch.cat(chosen).sort().values

    def _taken(self, predictions: PredictionsBySet, taken: Mapping[str, torch.Tensor]) -> dict[str, Predictions]:
        return {name: _take(predictions[name], positions) for name, positions in taken.items()}

    def _predict(self, model: PreTrainedModel, taken: Mapping[str, torch.Tensor]) -> dict[str, Predictions]:
        predicted = {}
        for name, positions in taken.items():
            faces = self.sets[name].subset(positions)
            logits = predict(model, faces, self.accelerator, self.batch_size)
            predicted[name] = Predictions(logits, faces.labels, losses(logits, faces.labels, self.kind), faces.identities)
        return predicted

    def _rounded_entry(self, predicted: Mapping[str, PredictionsBySet], references: list[dict[str, Predictions]]) -> dict[str, Any]:
        """Return scores, forget loss and attacks of each model, and the gap closure, at one precision."""
        entry: dict[str, Any] = {}
        for role, of in predicted.items():
            entry[role] = {name: of[name].score(self.kind) for name in COMPARED}
            entry[role]["forget_loss"] = of["forget"].losses.double().mean().item()
            if role != "oracle":
                attacks = run_attacks(of, references, [], self.kind, self.settings)
                entries = {attack.name: attack_entry(attack, of) for attack in attacks}
                entry[role]["attacks"] = {name: {key: found[key] for key in ATTACK_NUMBERS} for name, found in entries.items()}
        if len(predicted) == 3:
            original, unlearned, oracle = (predicted[role]["forget"] for role in ("original", "unlearned", "oracle"))
            closure = gap_closure(*(of.score(self.kind) for of in (original, unlearned, oracle)))
            entry["gap_closure"] = closure
            entry["gap_closure_interval"] = gap_closure_interval(closure, original, unlearned, oracle, self.kind, self.settings)
        return entry

    def _features(self, role: str, name: str, positions: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of photos by layer: hidden states, and the input of the head, as far as the model has them."""
        model, faces = self._model(role), self.sets[name]
        batches = [layer_features(model, faces.batch(part, self.accelerator.device)[0]) for part in positions.split(self.batch_size)]
        before_head = self._stored(role)[name].features
        hidden = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        return hidden + ([] if before_head is None else [before_head[positions]])

    def _candidates(self, person: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return equally many photos of the forgotten person and of others, pixels from 0 to 1 (n, 3, S, S), and their people (n,)."""
        sets = [self.sets[name] for name in ("support", "forget", "retain", "test")]
        photos = {person: _first_photos(sets[:2], person)}
        count = len(photos[person])
        others = [(faces, other) for faces in sets[2:] for other, of in faces.positions_of.items() if len(of) >= count]
        order = torch.randperm(len(others), generator=generator(self.settings.seed, "candidates")).tolist()[: MAX_CANDIDATES - 1]
        photos |= {others[number][1]: _first_photos([others[number][0]], others[number][1], count) for number in order}
        return torch.cat(list(photos.values())).float() / 255, torch.tensor(list(photos)).repeat_interleave(count)


def _first_photos(sets: list[FaceSet], person: int, count: int = PHOTOS_PER_CANDIDATE) -> torch.Tensor:
    """Return the pixels of a person's first photos in some sets, uint8 (m, 3, S, S)."""
    return torch.cat([faces.raw_pixels(faces.positions_of[person]) for faces in sets if person in faces.positions_of])[:count]


def _take(predictions: Predictions, positions: torch.Tensor) -> Predictions:
    """Return the predictions for the photos at these positions, without features and further views."""
    tensors = {name: getattr(predictions, name)[positions] for name in ("logits", "labels", "losses", "identities")}
    return dataclasses.replace(predictions, **tensors, features=None, views=())
