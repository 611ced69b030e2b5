"""The handlers of the page, without a browser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from oneshui_hf.app.sessions import Sessions
from support.served import require_gradio


@pytest.fixture
def page() -> Any:
    require_gradio()
    from oneshui_hf.app.page import Page

    return Page(SimpleNamespace(choices=[], photo_alone=False), Sessions())  # type: ignore[arg-type]


def test_a_new_photo_withdraws_what_was_answered_for_the_one_before(page: Any) -> None:
    shown = page.show_photo(None, SimpleNamespace(session_hash="visitor"))
    first, second, checked = shown[-3:]
    assert (first["visible"], second["visible"], checked) == (False, False, False)
