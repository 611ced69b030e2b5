"""The Hub's client, kept quiet, its failures told in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import OneshuiError, UsageError


@contextlib.contextmanager
def hub(repo_id: str, revision: str | None) -> Iterator[None]:
    """Keep the Hub's client quiet, and tell its failures in one sentence."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars = not are_progress_bars_disabled()
    disable_progress_bars()
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
    if cause(errors.OfflineModeIsEnabled):
        return OneshuiError("The Hub is switched off here by HF_HUB_OFFLINE; unset it to push or pull.")
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
