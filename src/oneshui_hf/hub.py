"""The Hub's client, kept quiet, its failures told in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OneshuiError, UsageError
from .reporting import Reporter
from .runs import versions

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@contextlib.contextmanager
def hub(repo_id: str, revision: str | None) -> Iterator[None]:
    """Keep the Hub's client quiet, and tell its failures in one sentence."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()  # each retry would be a line
    try:
        yield
    except OneshuiError:
        raise
    except Exception as error:
        told = sentence(error, repo_id, revision)
        if told is None:
            raise
        raise told from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def sentence(error: BaseException, repo_id: str, revision: str | None) -> OneshuiError | None:
    """Return what to tell of a client's error, or None where it is no failure of the Hub."""
    from huggingface_hub import errors

    chain = list(_causes(error))

    def cause(kind: Any) -> Any:
        return next((e for e in chain if isinstance(e, kind)), None)

    if cause(errors.HFValidationError):
        return UsageError(f"'{repo_id}' is not the name of a repository; it reads USER/NAME.")
    if cause(errors.OfflineModeIsEnabled) or "OfflineModeIsEnabled" in str(error):  # `datasets` tells it in words alone
        return OneshuiError(f"The Hub is switched off here by HF_HUB_OFFLINE; unset it to reach {repo_id}.")
    if cause(errors.RevisionNotFoundError):
        return UsageError(f"{repo_id} has no revision '{revision}'.")
    if cause(errors.RepositoryNotFoundError):
        return OneshuiError(f"There is no repository {repo_id} that you may see; check its name, and `hf auth whoami`.")
    if refused := cause(errors.HfHubHTTPError):
        status = refused.response.status_code
        if status in (401, 403):
            return OneshuiError(f"The Hub does not let you do this with {repo_id}; log in with another token.")
        reason = refused.server_message or _first_line(refused)
        return OneshuiError(f"The Hub answered {status} for {repo_id} ({reason}).")
    # HTTPError is that of the client's HTTP library, which has changed from release to release.
    if away := cause((errors.HTTPError, ConnectionError, TimeoutError)):
        return OneshuiError(f"The Hub cannot be reached ({_first_line(away)}).")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def signed_in() -> HfApi:
    """Return the client of whoever is logged in.

    Raises:
        UsageError: Nobody is.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UsageError("Nobody is logged in to the Hub; run `hf auth login`, or set HF_TOKEN.")
    return HfApi(library_name="oneshui")


@dataclass(frozen=True)
class Repository:
    """A repository that is written to.

    Attributes:
        api: The client.
        name: USER/NAME.
        kind: "model" or "dataset".
        revision: The branch; the main one where None.
    """

    api: HfApi
    name: str
    kind: str
    revision: str | None

    @classmethod
    def make(cls, api: HfApi, name: str, *, kind: str, private: bool, revision: str | None, reporter: Reporter) -> Repository:
        """Make the repository, or take the one that is there.

        The visibility is asked for after it was set: what counts is what the Hub did, before a byte is sent.

        Raises:
            UsageError: The repository is public and was to be private.
        """
        full: str = api.create_repo(name, private=private, repo_type=kind, exist_ok=True).repo_id
        hidden = api.repo_info(full, repo_type=kind).private
        if private and not hidden:
            raise UsageError(f"{full} is public, so nothing was sent; name another, or publish there with --public.")
        if hidden and not private:
            reporter.note(f"{full} was there already and stays private.")
        if revision and not revision.startswith("refs/"):
            api.create_branch(full, branch=revision, repo_type=kind, exist_ok=True)
        return cls(api, full, kind, revision)

    def commit(self, folder: Path, message: str | None, ours: Callable[[str], bool], reporter: Reporter) -> str:
        """Send a folder in one commit and return the commit's address.

        Files that an earlier push left and this folder does not have are removed; files of other origin stay.

        Args:
            folder: What to send.
            message: Of the commit.
            ours: Whether a file in the repository is of a kind that we write.
            reporter: For progress.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        there = self.api.list_repo_files(self.name, repo_type=self.kind, revision=self.revision)
        changes = [CommitOperationAdd(file, folder / file) for file in files]
        changes += [CommitOperationDelete(file) for file in there if file not in files and ours(file)]
        reporter.info(f"Sending {len(files)} files to {self.name}.")
        commit = self.api.create_commit(
            self.name,
            changes,
            commit_message=message or f"Push with oneshui {versions()['oneshui-hf']}",
            repo_type=self.kind,
            revision=self.revision,
        )
        return str(commit.commit_url)
