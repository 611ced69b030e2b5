"""The Hub's client draws bars only where the reporter lets it."""

from __future__ import annotations

import sys

import pytest
from huggingface_hub.utils import are_progress_bars_disabled

from oneshui_hf.hub import hub_bars, hub_errors
from oneshui_hf.reporting import SILENT, ConsoleReporter
from support.terminal import Terminal


def test_the_client_draws_bars_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not are_progress_bars_disabled()
    with hub_errors("user/name", None, ConsoleReporter()):
        assert are_progress_bars_disabled()  # the test's stderr is a file
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    with hub_errors("user/name", None, ConsoleReporter()):
        assert not are_progress_bars_disabled()
    for reporter in (SILENT, ConsoleReporter(quiet=True)):
        with hub_errors("user/name", None, reporter):
            assert are_progress_bars_disabled()
    assert not are_progress_bars_disabled()


def test_bars_of_downloads_within_a_silenced_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    with hub_errors("user/name", None):
        for reporter, disabled in ((SILENT, True), (ConsoleReporter(), False), (ConsoleReporter(quiet=True), True)):
            with hub_bars(reporter):
                assert are_progress_bars_disabled() is disabled
            assert are_progress_bars_disabled()
    assert not are_progress_bars_disabled()
