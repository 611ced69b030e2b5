"""The options of the request desk's commands. This module imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass

from ..desk.states import STATES
from ..options import option
from .command_options import DATA, MAX_SEED, METHOD

DESK = "requests"  # the default folder


@dataclass(frozen=True, kw_only=True)
class DeskOptions:
    """The desk of a command."""

    desk: str = option(DESK, "Folder of the request desk.", path=True)


@dataclass(frozen=True, kw_only=True)
class ReceiveOptions(DeskOptions):
    """A new request."""

    image: str = option(help="Photo of the person who wants to be forgotten.", path=True)
    identity: str | None = option(None, "Identity of the person, as named in the training data, if it is known.", panel=DATA)
    received: str | None = option(None, "Day of receipt, as 2026-11-03. Today (UTC) by default.", panel=DATA)
    channel: str | None = option(None, "How the request came, such as 'mail'. It enters the ledger, so it must not name the person.")


@dataclass(frozen=True, kw_only=True)
class ListOptions(DeskOptions):
    """Which requests to list."""

    state: str | None = option(None, "List requests in this state; 'open' is every state in which work is left.", choices=("open", *STATES))
    due_within: int | None = option(None, "List requests that are due within this number of days, or overdue.", minimum=0, maximum=36500)


@dataclass(frozen=True, kw_only=True)
class RequestOptions(DeskOptions):
    """One request."""

    request: str = option(help="Number of the request, such as R-000007.")


@dataclass(frozen=True, kw_only=True)
class IdentifyOptions(RequestOptions):
    """Who the person is, and how this is found out."""

    run: str | None = option(None, "Run of the model. The newest original by default.", path=True)
    identity: str | None = option(None, "Identity of the person, as named in the training data.", panel=DATA)
    photo_alone: bool = option(
        False, "You have checked that the photo shows the person, and the method needs no identity. For methods that use the photo alone."
    )
    face_encoder: str | None = option(
        None, "Encoder that the identities were enrolled with. That of the preparation by default.", path=True, panel=METHOD
    )


@dataclass(frozen=True, kw_only=True)
class ApplyOptions(DeskOptions):
    """The batch, and the method. The method's own options are added to these."""

    requests: tuple[str, ...] = option((), "Numbers of the requests. All that are identified by default.")
    run: str = option(help="Run of the model: the one that is in service.", path=True)
    method: str | None = option(
        None, "Unlearning method; see `oneshui methods`. Chosen by what the run has prepared by default, exact methods first.", panel=METHOD
    )
    preset: str | None = option(None, "Values of the options that `unlearn` reads: a name or a file.", path=True, panel=METHOD)
    budget: float | None = option(
        None,
        "Most points of score that the others may lose through this batch and those before it, as estimated from simulated requests. 2 by "
        "default, if the preparation kept some.",
        minimum=0,
    )
    seed: int = option(0, "Seed of all random draws.", minimum=0, maximum=MAX_SEED)
    output_dir: str | None = option(None, "Folder of the new model. RUN-batchN by default, N being the number of the batch.", path=True)
    dry_run: bool = option(False, "Print what would be done, and change nothing.")


@dataclass(frozen=True, kw_only=True)
class RecheckOptions(DeskOptions):
    """A later model, and the requests that it is examined for."""

    requests: tuple[str, ...] = option((), "Numbers of the requests. All that were applied by default.")
    run: str | None = option(None, "Run of the model. The newest original or unlearned one by default.", path=True)
    image: str | None = option(None, "Photo of the person, if the kept one was erased. For one request.", path=True, panel=DATA)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(DeskOptions):
    """The model that is in service now."""

    requests: tuple[str, ...] = option((), "Numbers of the requests. All that were verified in this model by default.")
    run: str = option(help="Run of the model that is in service now.", path=True)


@dataclass(frozen=True, kw_only=True)
class ReasonOptions(RequestOptions):
    """A decision with a reason."""

    reason: str = option(help="The reason, in one sentence. It enters the ledger, so it must not name the person.")


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(RequestOptions):
    """The letter to the person."""

    dry_run: bool = option(False, "Print the letter, and do not record that the person was answered.")


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What to verify."""

    file: str = option(help="Ledger, or receipt.", path=True)
    run: str | None = option(None, "Run whose weights must be those that the ledger or the receipt names.", path=True)
    anchor: str | None = option(None, "Hash of an entry that was kept elsewhere. Without it, a cut or rewritten ledger is not detected.")
