"""The rule for publishing two models of the same original: whoever holds both can compute their difference, which shows who was forgotten.

A per-identity update *is* the difference of the two models' weights; see "The difference of two models" in docs/metrics.md. Every push and
pull notes its repository in the run's record, so that a later push of a related run finds it. Related are the runs that a run was computed
from, and all runs next to one of them that were computed from the same original, directly or through others. A repository counts while
anyone can read a revision of it that contains the weights; `oneshui hub squash` ends earlier revisions. A Space has a copy of the weights
and counts as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import OneshuiError, UsageError
from ...hub import SPACES, Repository, repository_kind
from ...methods.base import Method
from ...plugins import METHODS, Plugins
from ...reporting import Reporter
from ...runs import RECORD, Run, write_record
from .history import Token, holds_weights
from .options import PushOptions
from .redaction import is_hub_id

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WAYS_OUT = (
    "Forget several people in one release (--min-batch refuses smaller ones; the group is still found), replace the public model and end "
    "its earlier revisions with `oneshui hub squash`, or retrain with `oneshui retrain` (the outputs still show who is gone)"
)


def check_difference(run: Run, options: PushOptions, api: HfApi, reporter: Reporter) -> None:
    """Check that the publication of a run does not reveal by accident who was forgotten.

    Raises:
        UsageError: The run would be public, and it forgets fewer identities than `--min-batch`; or a related model is public, one of the
            two is of a per-identity method or forgets a single identity, and `--difference-is-public` is not given.
    """
    if options.private:
        return
    relatives = _relatives(run)
    if run.record.kind == "unlearned":
        _require_batch(run, options.min_batch, reporter)
        if _may_reveal_people(run) and not options.difference_is_public:
            _require_known_parent(run, relatives)
    for other, repo_id in _public_relatives(run, relatives, api):
        relation = "the original of this model" if other.record.kind == "original" else "another model of the same original"
        found = f"{repo_id} publishes {relation}, and the difference of the two models shows who was forgotten"
        if not (_may_reveal_people(run) or _may_reveal_people(other)):
            reporter.warn(f"{found}, to some degree even after retraining; `oneshui evaluate` measures how well.")
        elif not options.difference_is_public:
            raise UsageError(f"{found}, so nothing was sent. {WAYS_OUT}; --difference-is-public publishes nevertheless.")


def note_publication(run: Run, repo_id: str, reporter: Reporter, *, public: bool) -> None:
    """Note in a run's record that a repository contains its weights. Call it before the upload, which may be interrupted."""
    record = run.record
    publication = {"repo_id": repo_id, "public": public}
    record.publications = [*(one for one in record.publications if one["repo_id"] != repo_id), publication]
    try:
        write_record(run.path, record)
    except OSError as error:
        reporter.warn(
            f"{run.path / RECORD} cannot be written ({error.strerror}), so the publication at {repo_id} is not noted there, and a later "
            "push of a related model will not be checked against it."
        )


def base_repository(run: Run, repository: Repository) -> str | None:
    """Return the repository that the card of an unlearned model names as its base model; None without one.

    It is that of the nearest run that this one was computed from, and contains that run's weights. The card of a public repository names
    none that is private.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if run.record.kind != "unlearned":
        return None
    relatives, weights, seen = _relatives(run), _parent(run), set[str]()
    token: Token = False if repository.public else None
    while weights and weights not in seen:
        seen.add(weights)
        ancestors = [other for other in relatives if other.record.weights == weights]
        for name in (publication["repo_id"] for other in ancestors for publication in other.record.publications):
            with contextlib.suppress(HfHubHTTPError):  # it does not exist, or cannot be read
                if name != repository.name and not name.startswith(SPACES) and holds_weights(repository.api, name, weights, token):
                    return str(name)
        weights = next(filter(None, map(_parent, ancestors)), None)
    return None


def public_dataset(run: Run, api: HfApi) -> str | None:
    """Return the repository on the Hub that a run was trained on, if anyone can read it."""
    from huggingface_hub.errors import HfHubHTTPError

    dataset = run.record.options.get("dataset")
    if not isinstance(dataset, str) or "/" not in dataset or not is_hub_id(dataset) or run.record.options.get("data_dir"):
        return None
    with contextlib.suppress(HfHubHTTPError):  # it does not exist, or is private
        return None if api.dataset_info(dataset, token=False).private else str(dataset)
    return None


def _require_batch(run: Run, least: int, reporter: Reporter) -> None:
    people = run.record.report.get("people")
    if people is None and least > 1:
        raise UsageError(f"The number of identities that {run.path} forgets is unknown, so --min-batch {least} cannot be checked.")
    if people is not None and people < least:
        raise UsageError(
            f"{run.path} forgets {people} of the {least} identities that --min-batch requires; unlearn more requests together."
        )
    if people == 1:
        reporter.warn("This release forgets a single identity: whoever knows that there was a request has one person to identify.")


def _require_known_parent(run: Run, relatives: Iterable[Run]) -> None:
    if _parent(run) not in {other.record.weights for other in relatives}:
        raise UsageError(
            f"The run that {run.path} was computed from is not where its record has it, so whether that model is public is unknown, and "
            "the difference of the two shows who was forgotten. Put it next to this run, or publish with --difference-is-public."
        )


def _may_reveal_people(run: Run) -> bool:
    """Return whether the difference of a run and its original may identify a person, so that publishing both needs a flag.

    True for an unlearned model of a per-identity method, or of one that is not installed here, and for one that may have forgotten a
    single identity, by any method: then whoever is found is the person.
    """
    if run.record.kind != "unlearned":
        return False
    if run.record.report.get("people") in (None, 1):
        return True
    try:
        method: type[Method[object]] = Plugins(METHODS).load(str(run.record.report.get("method")))
    except OneshuiError:
        return True
    return method.per_identity


def _public_relatives(run: Run, relatives: Iterable[Run], api: HfApi) -> Iterator[tuple[Run, str]]:
    """Yield each related run with other weights that is public, and its repository."""
    for other in relatives:
        for publication in other.record.publications:
            if other.record.weights not in (None, run.record.weights) and _is_public(publication, str(other.record.weights), api):
                yield other, publication["repo_id"]


def _is_public(publication: Mapping[str, Any], weights: str, api: HfApi) -> bool:
    """Return whether anyone can read a revision with these weights now.

    Where the Hub does not answer, it is as recorded; where it does not list the revisions of a public repository, they count.
    """
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    repo_id = publication["repo_id"]
    kind, name = repository_kind(repo_id)
    try:
        if api.repo_info(name, repo_type=kind, token=False).private:
            return False
    except RepositoryNotFoundError:
        return False
    except HfHubHTTPError:
        return bool(publication["public"])
    try:
        return holds_weights(api, repo_id, weights, token=False)
    except HfHubHTTPError:
        return True


def _relatives(run: Run) -> list[Run]:
    """Return the runs that are connected to a run by "was computed from", the run itself included."""
    known = {found.path.resolve(): found for folder in _folders(run) for found in _runs_in(folder)}
    related = {run.record.weights, _parent(run)} - {None}
    while True:
        found = [other for other in known.values() if {other.record.weights, _parent(other)} & related]
        reached = {weights for other in found for weights in (other.record.weights, _parent(other)) if weights}
        if reached <= related:
            return found
        related |= reached


def _folders(run: Run) -> Iterator[Path]:
    """Yield the folders that contain the run and the runs that it was computed from."""
    seen: set[Path] = set()
    while run.path.resolve() not in seen:
        seen.add(run.path.resolve())
        yield run.path.resolve().parent
        earlier = Path(str((run.record.parent or {}).get("run")))
        if not (earlier / RECORD).is_file():
            return
        run = Run.open(earlier)


def _runs_in(folder: Path) -> Iterator[Run]:
    for file in sorted(folder.glob(f"*/{RECORD}")):
        try:
            yield Run.open(file.parent)
        except OneshuiError:  # damaged, or of a later version; it cannot be pushed either
            continue


def _parent(run: Run) -> str | None:
    """Return the hash of the weights that a run was computed from."""
    return (run.record.parent or {}).get("weights")
