"""`oneshui app` as a Python function."""

from __future__ import annotations

from typing import Any

from .api_options import AnyRun, read_options, with_options
from .api_run import open_run
from .reporting import Reporter, default_reporter
from .stages.app_options import AppOptions

__all__ = ["serve_app"]


@with_options(AppOptions)
def serve_app(run: AnyRun = None, *, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Serve the page for one photo until it is interrupted, and return its `address`."""
    reporter = reporter or default_reporter()
    resolved = read_options(AppOptions, options, "app")
    from .app.server import check_app
    from .app.server import serve as serve_page

    check_app(resolved)
    return serve_page(open_run(run, ("original", "unlearned"), reporter, "app"), resolved, reporter)
