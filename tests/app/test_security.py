from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.app.security import Guard, check_reach, private_uploads
from oneshui_hf.errors import UsageError


def password_file(folder: Path, text: str = "secret\n", mode: int = 0o600) -> Path:
    file = folder / "password"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_the_page_is_on_this_machine_unless_host_and_auth_are_given(tmp_path: Path) -> None:
    file = password_file(tmp_path)
    assert check_reach(None, None) == ("127.0.0.1", None)
    assert check_reach(None, f"ada:{file}") == ("127.0.0.1", ("ada", "secret"))
    assert check_reach("localhost", None) == ("localhost", None)
    assert check_reach("0.0.0.0", f"ada:{file}") == ("0.0.0.0", ("ada", "secret"))
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", "127.0.0.1.example.org"):
        with pytest.raises(UsageError, match="needs --auth USER:FILE as well"):
            check_reach(host, None)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("secret\n", 0o644, "Others can read the password"),
        ("", 0o600, "must contain the password and nothing else"),
        ("a\nb\n", 0o600, "must contain the password and nothing else"),
        ("x" * 5000, 0o600, "must contain the password and nothing else"),
    ],
)
def test_a_password_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, mode: int, words: str) -> None:
    file = password_file(tmp_path, text, mode)
    with pytest.raises(UsageError, match=words) as caught:
        check_reach(None, f"ada:{file}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("auth", ["ada", "ada:", ":file", ""])
def test_auth_has_a_user_and_a_file(auth: str) -> None:
    with pytest.raises(UsageError, match="as USER:FILE"):
        check_reach(None, auth)


def test_a_missing_password_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        check_reach(None, f"ada:{tmp_path / 'missing'}")


def test_uploads_are_private_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/before")
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    with private_uploads() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        (folder / "photo").mkdir()
        (folder / "photo" / "ada.png").write_bytes(b"x")
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "/before"
    assert "GRADIO_ANALYTICS_ENABLED" not in os.environ


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"hello"})


def answer(guard: Guard, host: str) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard({"type": "http", "headers": [(b"host", host.encode())]}, lambda: None, send))  # type: ignore[arg-type,return-value]
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, sent[1]["body"]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860"])
def test_every_answer_forbids_to_load_anything_from_elsewhere(host: str) -> None:
    status, headers, body = answer(Guard(hello, frozenset({"127.0.0.1", "localhost", "::1"})), host)
    assert (status, body) == (200, b"hello")
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert not any("http" in value or "*" in value for value in policy.values())
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["evil.example:7860", "", "127.0.0.1.evil.example", "[::2]"])
def test_another_host_name_is_refused(host: str) -> None:
    status, headers, body = answer(Guard(hello, frozenset({"127.0.0.1", "localhost", "::1"})), host)
    assert status == 421
    assert b"hello" not in body
    assert "content-security-policy" in headers


def test_a_space_may_be_framed_and_has_any_name() -> None:
    status, headers, _ = answer(Guard(hello, None, framed=True), "user-space.hf.space")
    assert status == 200
    assert "frame-ancestors" not in headers["content-security-policy"]
