"""Who can reach the page, what the browser may load, and where Gradio keeps what is sent to it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import open_regular
from ..option_values import expand_home, shown

LOOPBACK = "127.0.0.1"
MAX_PASSWORD = 1024  # bytes
# Only what this server sends: no fonts, scripts, pictures or connections from elsewhere. Gradio's own page needs inline scripts.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
NO_FRAME = "; frame-ancestors 'none'"
Message = MutableMapping[str, Any]
Application = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_reach(host: str | None, auth: str | None) -> tuple[str, tuple[str, str] | None]:
    """Return the address to listen on, and the user name and password that the page asks for.

    Args:
        host: The value of `--host`.
        auth: The value of `--auth`.

    Raises:
        UsageError: Other machines would reach the page without a password, or the file of the password cannot be used.
    """
    if host is not None and auth is None and not is_loopback(host):
        raise UsageError(f"--host {shown(host)} lets other machines reach the page, so it needs --auth USER:FILE as well.")
    return host or LOOPBACK, None if auth is None else read_password(auth)


def read_password(auth: str) -> tuple[str, str]:
    """Return the user name and the password of `--auth USER:FILE`.

    Raises:
        UsageError: The value has another form, or the file is missing, is readable for others, or contains no password of one line.
    """
    user, colon, name = auth.partition(":")
    if not (user and colon and name):
        raise UsageError("--auth takes a user name and the file with the password, as USER:FILE.")
    file = Path(expand_home(name))
    try:
        with open_regular(file) as stream:
            mode, data = os.fstat(stream.fileno()).st_mode, stream.read(MAX_PASSWORD + 1)
    except OSError as error:
        raise UsageError(f"The password in {file} cannot be read: {error.strerror}.") from None
    if os.name != "nt" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"Others can read the password in {file}; run `chmod 600 {file}`.")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    if len(data) > MAX_PASSWORD or len(lines) != 1 or not lines[0].strip():
        raise UsageError(f"{file} must contain the password and nothing else, in one line.")
    return user, lines[0]


@contextlib.contextmanager
def private_uploads() -> Iterator[Path]:
    """Yield a folder that only the owner may enter, where Gradio keeps what is sent to it; it is removed at the end.

    Gradio reads these variables when it is imported or starts. It would otherwise keep photos in a shared folder of the system, and report
    to its makers.
    """
    folder = Path(tempfile.mkdtemp(prefix="oneshui-app-"))  # mode 0700
    values = {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False", "GRADIO_MCP_SERVER": "False"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Guard:
    """Adds headers to every answer, and refuses requests for other host names: a page elsewhere could name this address (DNS rebinding)."""

    def __init__(self, app: Application, hosts: frozenset[str] | None, *, framed: bool = False) -> None:
        """Wrap an application.

        Args:
            app: The application.
            hosts: The host names that it answers to; all of them if None.
            framed: Whether another page may show it in a frame, as the Hub does.
        """
        self._app, self._hosts = app, hosts
        policy = POLICY if framed else POLICY + NO_FRAME
        self._headers = [(name.encode(), value.encode()) for name, value in (HEADERS | {"content-security-policy": policy}).items()]

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._hosts is not None and self._host_name(scope) not in self._hosts:
            await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain"), *self._headers]})
            await send({"type": "http.response.body", "body": b"This server does not answer to this host name."})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    @staticmethod
    def _host_name(scope: Message) -> str:
        host = dict(scope.get("headers") or []).get(b"host", b"").decode("latin-1").lower()
        return host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
