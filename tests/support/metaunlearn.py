"""MetaUnlearn on the toy problem: short options, data access and preparation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from oneshui_hf.methods import Artefact, DataAccess
from oneshui_hf.testing.toy_problem import ToyProblem
from oneshui_plugins.metaunlearn import MetaUnlearn, MetaUnlearnOptions
from oneshui_plugins.metaunlearn.objectives import TERMS

OBJECTIVES = (*TERMS, "scrub")
QUICK: dict[str, Any] = {"steps": 2, "calibration": 0}


def options(**values: Any) -> MetaUnlearnOptions:
    return MetaUnlearn.prepare_options("metaunlearn", {}, QUICK | values)


def data_access(problem: ToyProblem) -> DataAccess:
    return DataAccess(problem.sets, MetaUnlearn.needs.prepare)


def prepare(problem: ToyProblem, folder: Path | None = None, **values: Any) -> Artefact:
    """Prepare; if a folder is given, save and load."""
    chosen = options(**values)
    artefact = MetaUnlearn().prepare(problem.model, data_access(problem), chosen, problem.context())
    if folder:
        artefact.options = dataclasses.asdict(chosen)
        artefact.save(folder, "metaunlearn", "weights", replace=True)
        artefact = Artefact.load(folder, "metaunlearn", "weights")
    return artefact
