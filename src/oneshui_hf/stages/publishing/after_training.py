"""`train --push-to-hub`: what is checked before the training, so that it is not in vain, and the push after it."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import OneshuiError, UsageError
from ...hub import hub_errors, logged_in_client, public_refusal
from ...reporting import Reporter
from ...runs import Run
from .options import PushOptions


def check_destination(repo_id: str) -> None:
    """Check that the user is logged in and can create, or write to, a private repository of this name. Nothing is created yet.

    Raises:
        UsageError: The name is invalid, nobody is logged in, another user owns the repository, or it is public.
        OneshuiError: The Hub cannot be reached or does not accept the token.
    """
    with hub_errors(repo_id, None):
        from huggingface_hub.errors import RepositoryNotFoundError
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(repo_id)
        api = logged_in_client()
        account = api.whoami()
        owners = (account["name"], *(one["name"] for one in account.get("orgs") or ()))
        owner, _, name = repo_id.rpartition("/")
        if owner and owner not in owners:
            raise UsageError(f"You are logged in to the Hub as {owners[0]}, who cannot create {repo_id}; name {owners[0]}/{name}.")
        try:
            found = api.repo_info(f"{owner or owners[0]}/{name}")
        except RepositoryNotFoundError:
            return
        if not found.private:
            raise public_refusal(repo_id, "--push-to-hub publishes in private repositories")


def check_labels(labels: Iterable[str], people: Iterable[str], *, is_people: bool) -> None:
    """Check before a training that `push` will not refuse its labels.

    Raises:
        OneshuiError: Labels are names of people.
    """
    from ...data.identity_labels import publish_people

    if publish_people(labels, people, is_people=is_people):
        raise OneshuiError(
            "Labels of this data are names of its identities, and a published model contains all labels, so --push-to-hub is refused and "
            "nothing was trained; train on labels that do not name people, or omit --push-to-hub."
        )


def push_trained(run: Run, repo_id: str, reporter: Reporter) -> None:
    """Publish a run that was just trained, in a private repository.

    Raises:
        OneshuiError: It could not be published. The run is complete nevertheless.
    """
    from .model import push

    try:
        address = push(run, PushOptions(repo_id=repo_id), reporter)
    except OneshuiError as error:
        raise OneshuiError(f"{error} The training is finished; publish it with `oneshui push {run.path} {repo_id}`.") from None
    reporter.note(f"Published: {address}")
