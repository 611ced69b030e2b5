"""The conformance kit, a pytest plugin that checks whether a method keeps the plugin contract.

    pytest --oneshui-method NAME
    pytest --oneshui-method my_package.my_module:MyMethod --oneshui-option steps=5     # in the folder of my_package

runs the tests of `conformance` on an installed method, or on a class that is not registered yet. Options shorten a slow preparation;
without them the method's defaults are used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CONFORMANCE = Path(__file__).parent / "conformance.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command-line options."""
    group = parser.getgroup("oneshui", "conformance of unlearning methods")
    group.addoption("--oneshui-method", metavar="NAME", help="Check the method of this name, or MODULE:CLASS.")
    group.addoption("--oneshui-option", metavar="KEY=VALUE", action="append", default=[], help="An option of the method; repeatable.")


def pytest_configure(config: pytest.Config) -> None:
    """Run the conformance tests instead of those in the current folder, and in addition to those named on the command line."""
    if (spec := config.getoption("--oneshui-method")) is not None:
        _check_method(config, spec)
        named = config.args if config.args_source == pytest.Config.ArgsSource.ARGS else []
        config.args = [*named, str(CONFORMANCE)]


def _check_method(config: pytest.Config, spec: str) -> None:
    """Find the method before any test runs. A module of the current folder or of the root folder can be imported, as by `python -m pytest`.

    Raises:
        pytest.UsageError: The method or one of its options does not exist, or cannot be loaded.
    """
    from ..errors import OneshuiError
    from .subject import Subject

    current, root = str(config.invocation_params.dir), str(config.rootpath)
    if current not in sys.path:
        sys.path.insert(0, current)
    if root not in sys.path:
        sys.path.append(root)
    try:
        Subject.load(spec, config.getoption("--oneshui-option")).check_options()
    except OneshuiError as error:
        raise pytest.UsageError(str(error)) from error
