"""Preparation: what a method computes while training data is still there, saved beside the model.

oneshui prepare --method metaunlearn --run RUN
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import UsageError
from ..methods.contract import Context, DataAccess, Method
from ..models.load import load_model
from ..plugins import METHODS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import Run
from .options import PrepareOptions
from .processes import make_accelerator, on_main
from .sets import open_data


def prepare(
    run: Run,
    options: PrepareOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> Path:
    """Prepare a method for a run's model and return the artefact's folder.

    Raises:
        UsageError: The method is unknown or prepares nothing, an option is wrong, or an artefact is there already.
        OneshuiError: The data is missing or has changed.
    """
    method_class: type[Method[Any]] = Plugins(METHODS).load(options.method)
    name = options.method
    if method_class.prepares == "never":
        raise UsageError(f"Method '{name}' has nothing to prepare; go on with `oneshui unlearn --method {name}`.")
    folder = run.require_complete().artefact(name)
    if folder.exists() and not options.overwrite:
        raise UsageError(f"{folder} exists; prepare anew with --overwrite.")
    size = run.record.report["split"]["forget_identities"]
    preset = method_class.preset(options.preset, run.record.dataset["name"], size) if options.preset else {}
    resolved = method_class.prepare_options(name, preset, method_options or {})

    accelerator = accelerator or make_accelerator()
    data = open_data(run, accelerator, options.data_dir, reporter)
    model, _, task = load_model(run.path, accelerator.device)
    context = Context(task, options.seed, accelerator, reporter, request_size=size)
    started = time.perf_counter()
    artefact = method_class().prepare(model, DataAccess(data.sets, method_class.needs.prepare), resolved, context)
    artefact.options = dataclasses.asdict(resolved)
    artefact.report |= context.report | {
        "preset": options.preset,
        "processes": accelerator.num_processes,
        "seconds": round(time.perf_counter() - started, 1),
        "seed": options.seed,
    }
    on_main(accelerator, lambda: artefact.save(folder, name, run.weights, replace=options.overwrite))
    return folder
