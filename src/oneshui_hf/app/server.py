"""Serves the page until the command is ended, on this machine only unless `--host` and `--auth` are both given."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..option_values import shown
from ..reporting import Reporter
from ..runs import Run
from ..stages.app_options import AppOptions
from .security import Guard, check_reach, is_loopback, private_uploads

EXTRA = 'pip install "oneshui-hf[app]"'
FIRST_PORT, PORTS = 7860, 100
ALL_ADDRESSES = "0.0.0.0"
NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


def check_app(options: AppOptions) -> None:
    """Check the options that need no model.

    Raises:
        UsageError: Gradio is not installed, the page would be open to others, a folder is missing, or the port is in use.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UsageError(f"Gradio, which shows the page, is not installed; run `{EXTRA}`.")
    host, _ = check_reach(options.host, options.auth)
    if options.benchmark is not None and not Path(options.benchmark).is_dir():
        raise UsageError(f"There is no folder {options.benchmark}; name another one with --benchmark.")
    if not _is_free(host, options.port or 0):
        raise UsageError(f"Port {options.port} is in use, or not yours; name another one with --port.")


def serve(run: Run, options: AppOptions, reporter: Reporter) -> dict[str, Any]:
    """Serve the page until Ctrl-C, and return its address.

    Raises:
        UsageError: As `check_app`, or the run cannot be used.
        OneshuiError: The model cannot be loaded.
    """
    with serving(run, options, reporter) as address:
        reporter.note(f"The page is at {address} until you press Ctrl-C.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return {"address": address}


@contextlib.contextmanager
def serving(run: Run, options: AppOptions, reporter: Reporter, *, photo_alone: bool = False, hosted: bool = False) -> Iterator[str]:
    """Serve the page until the block ends, and yield its address. What visitors sent is removed at the end.

    Args:
        run: The model.
        options: The options of the command.
        reporter: For warnings.
        photo_alone: Leave out the desk and all methods that act on an identity.
        hosted: Whether this is a Space on the Hub, which decides who reaches the page; it listens on all addresses then.
    """
    from .workbench import Workbench

    check_app(options)
    host, login = (ALL_ADDRESSES, None) if hosted else check_reach(options.host, options.auth)
    workbench = Workbench(run, options, reporter, photo_alone=photo_alone)
    with private_uploads(), _quiet():
        import gradio
        from starlette.middleware import Middleware

        from .page import build_page
        from .rendering import stylesheet
        from .sessions import Sessions

        blocks = build_page(workbench, Sessions())
        hosts = NAMES | {host} if is_loopback(host) else None
        system = ["system-ui", "sans-serif"]
        theme = gradio.themes.Base(font=system, font_mono=["ui-monospace", "monospace"], primary_hue="blue", neutral_hue="slate")
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=options.port or _free_port(host),
            auth=login,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=options.max_upload_mb * 2**20,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme,
            css=stylesheet(),
            app_kwargs={"middleware": [Middleware(Guard, hosts=hosts, framed=hosted)], "docs_url": None, "redoc_url": None},
        )
        try:
            yield address
        finally:
            blocks.close(verbose=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let libraries of the server print nothing: an access log would list who visited."""
    loggers = [logging.getLogger(name) for name in ("httpx", "uvicorn.access")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _free_port(host: str) -> int:
    """Return the first free port.

    Raises:
        UsageError: There is none.
    """
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        if _is_free(host, port):
            return port
    raise UsageError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free; name another one with --port.")


def _is_free(host: str, port: int) -> bool:
    """Return whether this process can listen on a port.

    Raises:
        UsageError: The host is no address of this machine.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return False
        raise UsageError(f"--host {shown(host)} is no address of this machine: {error.strerror}.") from None
    return True
