"""The Hub's client, without its own output, and with its errors as one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OneshuiError, UsageError, first_line
from .progress import gigabytes
from .reporting import SILENT, Reporter
from .runs import versions

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SPACES = "spaces/"  # as in addresses of the Hub


@contextlib.contextmanager
def hub_errors(repo_id: str, revision: str | None, reporter: Reporter = SILENT) -> Iterator[None]:
    """Silence the Hub's client, and raise its errors as an `OneshuiError` with one sentence.

    Args:
        repo_id: The repository, for messages.
        revision: Its revision, for messages.
        reporter: If it draws bars, so may the client, for downloads and uploads.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    if not reporter.draws_bars:
        disable_progress_bars()
    logging.set_verbosity_error()  # each retry would print a line
    try:
        yield
    except OneshuiError:
        raise
    except Exception as error:
        translated = translate_error(error, repo_id, revision)
        if translated is None:
            raise
        raise translated from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


@contextlib.contextmanager
def hub_bars(reporter: Reporter) -> Iterator[None]:
    """Let the Hub's client draw bars for downloads inside the block, if the reporter lets it. For a block that another one has silenced."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    draws = reporter.draws_bars
    if draws:
        enable_progress_bars()
    try:
        yield
    finally:
        if draws:
            disable_progress_bars()


def translate_error(error: BaseException, repo_id: str, revision: str | None) -> OneshuiError | None:
    """Return the error to raise for an error of the client; None if the Hub is not the cause."""
    from huggingface_hub import errors

    chain = list(_causes(error))

    def cause(kind: Any) -> Any:
        return next((e for e in chain if isinstance(e, kind)), None)

    if cause(errors.HFValidationError):
        return UsageError(f"'{repo_id}' is not the name of a repository; the format is USER/NAME.")
    if cause(errors.OfflineModeIsEnabled) or "OfflineModeIsEnabled" in str(error):  # `datasets` only names it in the message
        return OneshuiError(f"HF_HUB_OFFLINE disables the Hub; unset it to reach {repo_id}.")
    if cause(errors.RevisionNotFoundError):
        return UsageError(f"{repo_id} has no revision '{revision}'.")
    if cause(errors.RepositoryNotFoundError):
        return OneshuiError(f"Repository {repo_id} does not exist or you cannot access it; check its name, and `hf auth whoami`.")
    if refused := cause(errors.HfHubHTTPError):
        status = refused.response.status_code
        if status in (401, 403):
            return OneshuiError(f"The Hub denies you this access to {repo_id}; log in with another token.")
        reason = refused.server_message or first_line(refused)
        return OneshuiError(f"The Hub answered {status} for {repo_id} ({reason}).")
    # HTTPError comes from the client's HTTP library, which differs between releases.
    if unreachable := cause((errors.HTTPError, ConnectionError, TimeoutError)):
        return OneshuiError(f"The Hub cannot be reached ({first_line(unreachable)}).")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def logged_in_client(token: str | None = None) -> HfApi:
    """Return the Hub's client, logged in.

    Args:
        token: The token to use; None for the one that the client finds.

    Raises:
        UsageError: Nobody is logged in.
    """
    from huggingface_hub import HfApi, get_token

    if token is None and get_token() is None:
        raise UsageError("You are not logged in to the Hub; run `hf auth login`, or set HF_TOKEN.")
    return HfApi(library_name="oneshui", token=token)


def repository_kind(name: str) -> tuple[str, str]:
    """Return the kind of a repository ("model" or "space") and its name on the Hub; that of a Space begins with "spaces/" here."""
    inside = name.removeprefix(SPACES)
    return ("space" if inside != name else "model"), inside


def public_refusal(repo_id: str, reason: str) -> UsageError:
    """Return the error for a public repository where a private one was requested."""
    return UsageError(f"{repo_id} is public, so nothing was sent; {reason}: name another repository, or publish with `push --public`.")


@dataclass(frozen=True)
class Repository:
    """A repository to write to.

    Attributes:
        api: The client.
        name: USER/NAME.
        kind: "model", "dataset" or "space".
        revision: The branch; None is the main branch.
        public: Whether anyone can read it.
        pull_request: Whether a commit opens a pull request instead of changing the branch.
    """

    api: HfApi
    name: str
    kind: str
    revision: str | None
    public: bool
    pull_request: bool = False

    @classmethod
    def open_or_create(
        cls,
        api: HfApi,
        name: str,
        *,
        kind: str,
        private: bool,
        revision: str | None,
        reporter: Reporter,
        pull_request: bool = False,
    ) -> Repository:
        """Create the repository, or open an existing one. For a pull request it must exist, with the branch, and another user may own it.

        The visibility is read back from the Hub after it was set, before any file is sent.

        Raises:
            UsageError: The repository is public, and a private one was requested.
        """
        sdk = {"space_sdk": "gradio"} if kind == "space" else {}
        full: str = name if pull_request else api.create_repo(name, private=private, repo_type=kind, exist_ok=True, **sdk).repo_id
        is_private = api.repo_info(full, repo_type=kind).private
        if private and not is_private:
            raise public_refusal(full, "a private repository was requested")
        if is_private and not private:
            reporter.note(f"{full} exists already and stays private.")
        if revision and not revision.startswith("refs/") and not pull_request:
            api.create_branch(full, branch=revision, repo_type=kind, exist_ok=True)
        return cls(api, full, kind, revision, not is_private, pull_request)

    def commit(self, folder: Path, message: str | None, is_published_file: Callable[[str], bool], reporter: Reporter) -> str:
        """Send a folder in one commit and return the URL of the commit, or of the pull request.

        Files of an earlier push that this folder does not contain are removed; other files in the repository stay.

        Args:
            folder: The folder to send.
            message: The commit message; None for a default.
            is_published_file: Returns whether a file in the repository has a name that a push writes.
            reporter: For progress.
        """
        # Not `HfApi.upload_folder`: with hf_xet it splits a large folder into several commits, so that readers could see half of it. And
        # `*` in its `delete_patterns` also matches "/", so that it would remove files of others in nested folders.
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        existing = self.api.list_repo_files(self.name, repo_type=self.kind, revision=self.revision)
        operations = [CommitOperationAdd(file, folder / file) for file in files]
        operations += [CommitOperationDelete(file) for file in existing if file not in files and is_published_file(file)]
        size = sum((folder / file).stat().st_size for file in files)
        reporter.note(f"Sending {len(files)} files to {self.name}, {gigabytes(size)}.")
        commit = self.api.create_commit(
            self.name,
            operations,
            commit_message=message or f"Push with oneshui {versions()['oneshui-hf']}",
            repo_type=self.kind,
            revision=self.revision,
            create_pr=self.pull_request or None,
        )
        return str(commit.pr_url if self.pull_request else commit.commit_url)
