from __future__ import annotations

from typing import Any

from oneshui_hf.app.sessions import IDLE, MOST, Sessions


def test_a_visitor_has_their_own_session_until_they_leave() -> None:
    sessions = Sessions()
    photo: Any = object()
    sessions.of("a").photo = photo
    assert sessions.of("a").photo is photo
    assert sessions.of("b").photo is None
    sessions.drop("a")
    assert sessions.of("a").photo is None


def test_without_a_number_nothing_is_kept() -> None:
    sessions = Sessions()
    photo: Any = object()
    sessions.of(None).photo = photo
    assert sessions.of(None).photo is None
    assert len(sessions) == 0


def test_the_session_that_was_used_least_recently_goes_first() -> None:
    sessions = Sessions()
    photo: Any = object()
    for number in range(MOST):
        sessions.of(str(number)).photo = photo
    sessions.of("0")
    sessions.of("new")
    assert len(sessions) == MOST
    assert sessions.of("0").photo is photo
    assert sessions.of("1").photo is None


def test_an_idle_session_is_forgotten() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    photo: Any = object()
    sessions.of("a").photo = photo
    now[0] = IDLE - 1
    assert sessions.of("a").photo is photo
    now[0] += IDLE + 1
    assert sessions.of("b").photo is None
    assert len(sessions) == 1
