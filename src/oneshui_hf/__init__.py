"""oneshui: forget a person from a vision model when all you have is one photo of them.

The commands as functions; `oneshui --help` lists the same on the command line:

    import oneshui_hf

    run = oneshui_hf.train(dataset="synthetic", forget=5, epochs=10)
    oracle = oneshui_hf.retrain(run)
    oneshui_hf.prepare(run)
    unlearned = oneshui_hf.unlearn(run, images=["face.jpg"])
    oneshui_hf.evaluate(unlearned, oracle=oracle)
    unlearned.metrics, unlearned.pipeline(), unlearned.report()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .models.register import register_with_transformers

if TYPE_CHECKING:
    from .api import (
        answer_request,
        apply_requests,
        audit,
        benchmark,
        check_data,
        clear_cache,
        demo,
        draw_split,
        environment,
        erase_request,
        evaluate,
        extend_request,
        identify_request,
        list_cache,
        list_derived_models,
        list_requests,
        list_revisions,
        list_runs,
        load_dataset,
        predict,
        prepare,
        pull,
        purge,
        push,
        push_data,
        receive_request,
        recheck_requests,
        refuse_request,
        report,
        retrain,
        serve_app,
        serve_requests,
        show,
        squash_history,
        train,
        tune,
        unlearn,
        verify,
        withdraw_request,
    )
    from .api_run import Run

__all__ = [
    "Run",
    "answer_request",
    "apply_requests",
    "audit",
    "benchmark",
    "check_data",
    "clear_cache",
    "demo",
    "draw_split",
    "environment",
    "erase_request",
    "evaluate",
    "extend_request",
    "identify_request",
    "list_cache",
    "list_derived_models",
    "list_requests",
    "list_revisions",
    "list_runs",
    "load_dataset",
    "predict",
    "prepare",
    "pull",
    "purge",
    "push",
    "push_data",
    "receive_request",
    "recheck_requests",
    "refuse_request",
    "report",
    "retrain",
    "serve_app",
    "serve_requests",
    "show",
    "squash_history",
    "train",
    "tune",
    "unlearn",
    "verify",
    "withdraw_request",
]


register_with_transformers()  # imports nothing heavy now


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("oneshui-hf")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".api_run" if name == "Run" else ".api", __name__), name)
