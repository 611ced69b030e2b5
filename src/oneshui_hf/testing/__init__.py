"""The conformance kit, a pytest plugin that checks whether a method keeps the plugin contract.

    pytest --oneshui-method NAME
    pytest --oneshui-method my_package.my_module:MyMethod --oneshui-option steps=5

runs the tests of `conformance` on an installed method, or on a class that is not registered yet. Options shorten a slow preparation;
without them the method's defaults are used.
"""

from __future__ import annotations

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
    if config.getoption("--oneshui-method"):
        named = config.args if config.args_source == pytest.Config.ArgsSource.ARGS else []
        config.args = [*named, str(CONFORMANCE)]
