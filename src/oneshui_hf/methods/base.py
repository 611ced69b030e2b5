"""What an unlearning method is: a class with a name, what it needs, its options, and the two functions `prepare` and `apply`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from ..errors import OneshuiError, UsageError, did_you_mean
from ..options import fields, flag, option, resolve
from ..reporting import SILENT, Reporter
from .resume import Unfinished

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from ..data.schema import Task
    from .artefact import Artefact

VOCABULARY = frozenset({"support", "forget", "retain", "val", "train"})
OptionsT = TypeVar("OptionsT")
T = TypeVar("T")


@dataclass(frozen=True)
class Needs:
    """The data that a method reads, out of support, forget, retain, val, train. The core hands over these and nothing more."""

    prepare: frozenset[str] = frozenset()
    apply: frozenset[str] = frozenset({"support"})

    def __post_init__(self) -> None:
        if unknown := (self.prepare | self.apply) - VOCABULARY:
            raise OneshuiError(f"A method cannot need {sorted(unknown)}; the data are {sorted(VOCABULARY)}.")

    def __str__(self) -> str:
        def words(names: frozenset[str]) -> str:
            return ", ".join(sorted(names)) or "nothing"

        return f"prepare: {words(self.prepare)}; apply: {words(self.apply)}"

    @property
    def one_shot(self) -> bool:
        """Whether a request needs the handed-in photos alone."""
        return self.apply <= {"support"}


@dataclass(frozen=True)
class StepOptions:
    """Options of every method that takes one step of a length chosen on simulated requests (`choose_length`)."""

    length: float | None = option(
        None,
        "Length of the step as a share of the model's norm; the prepared one by default.",
        minimum=0,
        at="apply",
        search=(2e-5, 0.05),
    )
    unseen_support: bool = option(True, "Simulate requests with photos that the model was not trained on.")
    calibration: int = option(3, "Simulated requests on which the length is chosen; 0 leaves it as it is.", minimum=0)
    max_damage: float = option(5.0, "Most points of score that the step may cost the others on simulated requests.", minimum=0)


@dataclass(frozen=True)
class Cost:
    """What a preparation will take, told before it is begun.

    Attributes:
        forward: Photos that pass through the model without being differentiated.
        backward: Photos that are differentiated.
        bytes: Size of what is kept.
    """

    forward: int = 0
    backward: int = 0
    bytes: int = 0


@dataclass
class Context:
    """What a method is given beside model and data.

    Attributes:
        task: What the model predicts.
        seed: The seed of this call; draw from `generator(context.seed, "what for")`, never from global state.
        accelerator: For the device, and for sharing work over processes.
        reporter: For progress.
        report: What the method wants to be known of its work; it goes into the artefact or the receipt. No personal data.
        request_size: How many people the run's own request has; 0 where unknown.
        unfinished: What a long preparation remembers, so that it can go on where it was interrupted.
    """

    task: Task
    seed: int
    accelerator: Accelerator
    reporter: Reporter = SILENT
    report: dict[str, Any] = field(default_factory=dict)
    request_size: int = 0
    unfinished: Unfinished = field(default_factory=Unfinished)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    def mine(self, work: Sequence[T]) -> Sequence[T]:
        """Return the pieces of some work that this process does, in order; each piece is one process's."""
        return work[self.accelerator.process_index :: self.accelerator.num_processes]


class DataAccess:
    """The data that a method declared, as attributes (`data.train`); anything else raises."""

    def __init__(self, granted: Mapping[str, Any], declared: frozenset[str]) -> None:
        self._granted = {name: granted[name] for name in declared}

    def __getattr__(self, name: str) -> Any:
        if name in VOCABULARY and name not in self._granted:
            raise OneshuiError(f"The method reads '{name}' without declaring that it needs it.")
        try:
            return self._granted[name]
        except KeyError:
            raise AttributeError(name) from None


class Method(ABC, Generic[OptionsT]):
    """An unlearning method. Subclasses are registered under the entry-point group `oneshui.methods`.

    `prepare` runs while the training data is there and returns what to keep. `apply` runs when somebody asks, with the data that
    `needs.apply` names and nothing else, and returns a new model; the one handed in stays as it is.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs]
    options: ClassVar[type[Any]]
    prepares: ClassVar[Literal["never", "optional", "required"]] = "never"
    presets: ClassVar[tuple[str, str] | None] = None  # (package, file) of a JSON file
    draws: ClassVar[bool] = False  # whether `apply` draws at random, so that another seed gives another model
    distils: ClassVar[bool] = False  # whether `apply` learns from a teacher with the original's weights
    retrains: ClassVar[bool] = False  # whether `apply` trains anew, so that its result may keep nothing of the model handed in
    in_demo: ClassVar[bool] = False  # whether `oneshui demo` shows it beside the default method
    personal: ClassVar[bool] = False  # whether it acts only on people it was prepared for, so a model that never saw them stays as it is
    sharded: ClassVar[bool] = False  # whether it takes models alone that were trained in shards (`oneshui train --sharded`)
    sequential: ClassVar[bool] = False  # whether what was prepared for a model serves models that the method has since unlearned from it

    def prepare(self, model: nn.Module, data: DataAccess, options: OptionsT, context: Context) -> Artefact:
        """Compute what `apply` will need from training data."""
        raise OneshuiError(f"{type(self).__name__} has nothing to prepare.")

    def cost(self, model: nn.Module, data: DataAccess, options: OptionsT, context: Context) -> Cost:
        """Return what `prepare` will take with these options, for `oneshui prepare --dry-run`. At most, where it depends on the photos."""
        raise OneshuiError(f"{type(self).__name__} does not say what preparing it takes.")

    @abstractmethod
    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: OptionsT, context: Context) -> nn.Module:
        """Return a new model that has forgotten the people of the request."""

    @classmethod
    def idle(cls, options: OptionsT) -> frozenset[str]:
        """Return which options mean nothing beside the values of the others, so that `oneshui tune` leaves them alone."""
        return frozenset()

    @classmethod
    def preset(cls, name: str, dataset: str, forget: int) -> dict[str, Any]:
        """Return a preset's values for a data set and a number of people.

        A preset is a list of rules; the values of every rule whose conditions hold are taken, later ones winning.

        Raises:
            UsageError: There is no such preset.
        """
        known = cls.all_presets()
        if name not in known:
            raise UsageError(f"The method has no preset '{name}'.{did_you_mean(name, known) or ' It has none at all.'}")
        values: dict[str, Any] = {}
        for rule in known[name]:
            if rule.get("dataset", dataset) == dataset and rule.get("forget", forget) == forget:
                values |= rule["values"]
        return values

    @classmethod
    def all_presets(cls) -> dict[str, list[dict[str, Any]]]:
        """Return all presets, by name."""
        if cls.presets is None:
            return {}
        package, file = cls.presets
        return dict(json.loads(resources.files(package).joinpath(file).read_text(encoding="utf-8")))

    @classmethod
    def prepare_options(cls, name: str, preset: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Return the options of a preparation: given values over the preset's over the defaults."""
        return resolve(cls.options, {**preset, **given}, f"method '{name}'")

    @classmethod
    def apply_options(cls, name: str, prepared: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Return the options of a request: given values over those that were prepared with.

        Raises:
            UsageError: A given option acts at preparation only.
        """
        known = fields(cls.options)
        for key in given:
            field_name = key.replace("-", "_")
            if cls.prepares != "never" and prepared and field_name in known and known[field_name].metadata.get("at") == "prepare":
                raise UsageError(f"{flag(field_name)} of method '{name}' is fixed when preparing; give it to `oneshui prepare`.")
        return resolve(cls.options, {**prepared, **given}, f"method '{name}'")
