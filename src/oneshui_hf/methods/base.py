"""The contract of an unlearning method: a class with a summary, the data it reads, its options, and `prepare` and `apply`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, cast

from ..errors import OneshuiError, UsageError, did_you_mean
from ..options import field_name, fields, flag, names, option, resolve
from ..processes import OneProcess
from ..reporting import SILENT, Reporter
from .resume import ResumeState

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from ..data.schema import Task
    from .artefact import Artefact

READABLE_SETS = frozenset({"support", "forget", "retain", "val", "train"})
Situation = Literal["exact by design", "prepared by name", "photo alone", "training data", "baseline"]
OptionsT = TypeVar("OptionsT")
T = TypeVar("T")


@dataclass(frozen=True)
class Needs:
    """The data that a method reads: any of support, forget, retain, val, train. The core passes these sets and no others.

    Attributes:
        prepare: Sets that `Method.prepare` reads.
        apply: Sets that `Method.apply` reads.
    """

    prepare: frozenset[str] = frozenset()
    apply: frozenset[str] = frozenset({"support"})

    def __post_init__(self) -> None:
        if unknown := (self.prepare | self.apply) - READABLE_SETS:
            raise OneshuiError(f"A method cannot need {sorted(unknown)}; the sets are {sorted(READABLE_SETS)}.")

    def __str__(self) -> str:
        def words(sets: frozenset[str]) -> str:
            return ", ".join(sorted(sets)) or "nothing"

        return f"prepare: {words(self.prepare)}; apply: {words(self.apply)}"

    @property
    def one_shot(self) -> bool:
        """Whether `apply` reads no data other than the support images."""
        return self.apply <= {"support"}


@dataclass(frozen=True)
class StepOptions:
    """Options of every method that takes one step of a length chosen on simulated requests (`choose_length`)."""

    length: float | None = option(
        None,
        "Step length as a share of the norm of the model's parameters; the prepared one by default.",
        minimum=0,
        at="apply",
        search=(2e-5, 0.05),
    )
    unseen_support: bool = option(True, "Simulate requests with photos that the model was not trained on.")
    calibration: int = option(3, "Simulated requests on which the length is chosen; 0 skips this choice.", minimum=0)
    max_retain_drop: float = option(
        5.0,
        "Largest loss of score on the retain set, in points, that the step may cause on simulated requests.",
        minimum=0,
        formerly=("max_damage",),
    )


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a preparation.

    Attributes:
        forward: Photos that pass through the model without gradients.
        backward: Photos that pass through the model with gradients.
        bytes: Size of the artefact.
        memory: Bytes of what the preparation keeps in memory besides the model, its activations and the photos. 0 if it is little.
        trainings: Models that are trained by the run's recipe (`Context.retrain`).
        training_photos: Photos in the training sets of all these models.
    """

    forward: int = 0
    backward: int = 0
    bytes: int = 0
    memory: int = 0
    trainings: int = 0
    training_photos: int = 0

    def seconds(self, forward: float, backward: float, training: float) -> float:
        """Return the time on one process.

        Args:
            forward: Seconds per photo without gradients.
            backward: Seconds per photo with gradients.
            training: Seconds per photo of a training by the run's recipe.
        """
        return self.forward * forward + self.backward * backward + self.training_photos * training


class Retraining(Protocol):
    """Trains models by the recipe of the model that is prepared, on a part of its training identities, for methods that cross-fit.

    The models are kept in the model cache. They are never the reference models of an attack.
    """

    def __call__(self, left_out: Collection[int], seed: int) -> nn.Module:
        """Return a model that was trained without these identities (by number), in evaluation mode.

        Args:
            left_out: The training identities that are left out.
            seed: Seed of the order of photos and of the augmentation.
        """


@dataclass
class Context:
    """What a method receives in addition to model and data.

    Attributes:
        task: What the model predicts.
        seed: The seed of this call. Draw random numbers from `generator(context.seed, "purpose")`, never from global state.
        accelerator: Device and processes.
        reporter: Progress and warnings.
        report: Entries that the method adds to the report of the artefact or of the receipt. No personal data.
        request_size: Number of identities in the run's own request; 0 if unknown.
        resume_state: Where a long preparation saves its state, so that it can continue after an interruption.
        retrain: Trains models by the run's recipe on a part of its training identities; None at a request.
        successor: Set by `apply`: the artefact for later requests to the new model. Its tensors replace those of the artefact, and its
            values override the artefact's. The per-identity data of the others is carried over. None if the artefact serves those, too.
    """

    task: Task
    seed: int
    accelerator: Accelerator
    reporter: Reporter = SILENT
    report: dict[str, Any] = field(default_factory=dict)
    request_size: int = 0
    resume_state: ResumeState = field(default_factory=ResumeState)
    retrain: Retraining | None = None
    successor: Artefact | None = None

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    def local_share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that this process works on, in order. Each item belongs to exactly one process."""
        return items[self.accelerator.process_index :: self.accelerator.num_processes]

    def alone(self, name: str) -> Context:
        """Return the context of work that this process does without the others.

        Args:
            name: Name of the work, for the resume state.
        """
        state = self.resume_state.of_process(name, self.accelerator)
        return replace(self, accelerator=cast("Accelerator", OneProcess(self.device)), resume_state=state)

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes, on each of them."""
        if self.accelerator.num_processes == 1:
            return list(items)
        from accelerate.utils import gather_object

        return list(gather_object(list(items)))


class DataAccess:
    """The sets that a method declared, as attributes (`data.train`).

    Raises:
        OneshuiError: On access to a set that the method did not declare.
    """

    def __init__(self, granted: Mapping[str, Any], declared: frozenset[str]) -> None:
        self._granted = {name: granted[name] for name in declared}

    def __getattr__(self, name: str) -> Any:
        if name in READABLE_SETS and name not in self._granted:
            raise OneshuiError(f"The method reads '{name}' without declaring it; add it to the method's `needs`.")
        try:
            return self._granted[name]
        except KeyError:
            raise AttributeError(name) from None


class Method(ABC, Generic[OptionsT]):
    """Base class of an unlearning method. Subclasses are registered under the entry-point group `oneshui.methods`.

    `prepare` runs while the training data is available. Its artefact is saved next to the model. `apply` runs for a request. It reads the
    sets in `needs.apply` and nothing else, and returns a new model. Neither changes the model that it receives: weights, mode and
    `requires_grad` stay the same, and no gradients are left. `pytest --oneshui-method NAME` checks all of this.

    Attributes:
        summary: What the method does, in one line.
        paper: The paper that proposes it; "-" if there is none.
        needs: The sets that `prepare` and `apply` read.
        options: A frozen dataclass; each field is made by `option(...)` and has a default.
        prepares: Whether `prepare` has to run before `apply`: "never" (there is no `prepare`), "optional" or "required".
        presets: Package and file name of a JSON file of presets; see `preset`.
        stochastic: Whether `apply` uses random numbers, so that another seed gives another model.
        uses_teacher: Whether `apply` distils from a teacher that keeps the original model's weights.
        from_scratch: Whether `apply` trains from scratch, so that the result must not depend on the weights of the model it receives.
        in_demo: Whether `oneshui demo` runs it in addition to the default method.
        per_identity: Whether it acts only on identities that it was prepared for. A model that was not trained on them must stay unchanged.
        classes_only: Whether it serves only tasks with one class per photo, not attributes; `apply` refuses others with a `UsageError`.
        sharded: Whether it requires a model that was trained in shards (`oneshui train --sharded`).
        closed_form: Whether it requires a model with a head in closed form (`oneshui train --head closed-form`).
        exact: Whether nothing in the new model's trained weights was computed from the training photos of the forget identities.
        sequential: Whether an artefact also applies to the models that the method has made from the model it was prepared for.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs]
    options: ClassVar[type[Any]]
    prepares: ClassVar[Literal["never", "optional", "required"]] = "never"
    presets: ClassVar[tuple[str, str] | None] = None
    stochastic: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False
    in_demo: ClassVar[bool] = False
    per_identity: ClassVar[bool] = False
    classes_only: ClassVar[bool] = False
    sharded: ClassVar[bool] = False
    closed_form: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    sequential: ClassVar[bool] = False

    def prepare(self, model: nn.Module, data: DataAccess, options: OptionsT, context: Context) -> Artefact:
        """Compute from training data what `apply` will need.

        Args:
            model: The original model, in evaluation mode. Do not change it.
            data: The sets in `needs.prepare`, as `FaceSet`s.
            options: An instance of `options`.
            context: Task, seed, device and reporter.

        Returns:
            The artefact. The core fills in its options.
        """
        raise OneshuiError(f"{type(self).__name__} has nothing to prepare.")

    def cost(self, model: nn.Module, data: DataAccess, options: OptionsT, context: Context) -> Cost:
        """Return the cost of `prepare` with these options, for `oneshui prepare --dry-run`; an upper bound where it depends on the photos.

        Args:
            model: As in `prepare`.
            data: As in `prepare`.
            options: As in `prepare`.
            context: As in `prepare`.
        """
        raise OneshuiError(f"{type(self).__name__} does not report the cost of its preparation.")

    @abstractmethod
    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: OptionsT, context: Context) -> nn.Module:
        """Return a new model that has unlearned the identities of the request.

        Args:
            model: The model to unlearn from, in evaluation mode. Do not change it; the new model must not share memory with it.
            data: The sets in `needs.apply`. `data.support` is a `Request`; the others are `FaceSet`s.
            artefact: What `prepare` returned, as loaded from disk; None if the method was not prepared.
            options: An instance of `options`; fields with `at="prepare"` have the values that the artefact was prepared with.
            context: Task, seed, device and reporter.
        """

    @classmethod
    def situation(cls) -> Situation:
        """Return the situation that the method is for, which its other attributes decide."""
        if cls.exact:
            return "exact by design"
        if cls.per_identity:
            return "prepared by name"
        if not cls.needs.one_shot:
            return "training data"
        return "photo alone" if cls.needs.apply else "baseline"

    @classmethod
    def inactive_options(cls, options: OptionsT) -> frozenset[str]:
        """Return the options that have no effect given the values of the others. `oneshui tune` does not search them."""
        return frozenset()

    @classmethod
    def preset(cls, name: str, dataset: str, forget: int) -> dict[str, Any]:
        """Return the option values of a preset for a data set and a number of forget identities.

        A preset is a list of rules, each with `values` and optional conditions `dataset` and `forget`. The values of all matching rules
        are merged; later rules override earlier ones.

        Args:
            name: Name of the preset.
            dataset: Name of the data set.
            forget: Number of forget identities.

        Raises:
            UsageError: The method has no preset of this name.
        """
        presets = cls.all_presets()
        if name not in presets:
            raise UsageError(f"The method has no preset '{name}'.{did_you_mean(name, presets) or ' It has no presets.'}")
        values: dict[str, Any] = {}
        for rule in presets[name]:
            if rule.get("dataset", dataset) == dataset and rule.get("forget", forget) == forget:
                values |= rule["values"]
        return values

    @classmethod
    def all_presets(cls) -> dict[str, list[dict[str, Any]]]:
        """Return the rules of every preset by name."""
        if cls.presets is None:
            return {}
        package, file = cls.presets
        return dict(json.loads(resources.files(package).joinpath(file).read_text(encoding="utf-8")))

    @classmethod
    def prepare_options(cls, name: str, preset: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Return the options of a preparation. Given values override the preset, which overrides the defaults.

        Args:
            name: Name of the method, for messages.
            preset: Option values of a preset.
            given: Option values given by the user.

        Raises:
            UsageError: An option is unknown, or its value is invalid.
        """
        return resolve(cls.options, {**preset, **given}, f"method '{name}'")

    @classmethod
    def apply_options(cls, name: str, prepared: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Return the options of a request. Given values override those of the preparation.

        Args:
            name: Name of the method, for messages.
            prepared: Options of the artefact; empty without a preparation.
            given: Option values given by the user.

        Raises:
            UsageError: An option is unknown, its value is invalid, or it is fixed by the preparation.
        """
        known, spellings = fields(cls.options), names(cls.options)
        for key in given:
            name_of_field = spellings.get(field_name(key))
            if name_of_field and cls.prepares != "never" and prepared and known[name_of_field].metadata.get("at") == "prepare":
                raise UsageError(f"{flag(name_of_field)} of method '{name}' is fixed when preparing; give it to `oneshui prepare`.")
        return resolve(cls.options, {**prepared, **given}, f"method '{name}'")
