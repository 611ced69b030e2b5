"""The server of the page, asked by a client as a browser asks it: who reaches it, what it loads, and what is left on the disk."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.app.server import check_app
from oneshui_hf.errors import UsageError
from oneshui_hf.runs import Run
from oneshui_hf.stages.app_options import AppOptions
from support.commands import Oneshui, sentence
from support.served import ask, require_gradio, served

slow = pytest.mark.slow


def upload(address: str, data: bytes, name: str = "ada canary.png") -> tuple[int, str]:
    body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n--x--\r\n"
    return ask(address, "gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x")


def first_photo(address: str, file: str, session: str) -> str:
    """Give an uploaded photo to the page as a browser does, and return the answer."""
    config = json.loads(ask(address, "config")[1])
    (image,) = [one["id"] for one in config["components"] if one["type"] == "image"]
    (number,) = [one["id"] for one in config["dependencies"] if one["inputs"] == [image]]
    event = {"data": [{"path": file, "meta": {"_type": "gradio.FileData"}}], "fn_index": number, "session_hash": session}
    status, answer = ask(address, "gradio_api/queue/join?__theme=light", json.dumps(event).encode(), Content_Type="application/json")
    assert status == 200, answer
    return ask(address, f"gradio_api/queue/data?session_hash={session}")[1]


@slow
def test_nothing_is_left_of_a_photo_and_others_do_not_get_it(built: Run, photo_file: Path, tmp_path: Path) -> None:
    require_gradio()
    with served("app", built.path, home=tmp_path) as (address, temporary):
        host, port = urllib.parse.urlsplit(address).hostname, urllib.parse.urlsplit(address).port
        assert host == "127.0.0.1"
        (folder,) = temporary.glob("oneshui-app-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        status, page = ask(address)
        assert status == 200
        assert "fonts.googleapis" not in page

        status, answer = upload(address, photo_file.read_bytes())
        assert status == 200, answer
        (file,) = json.loads(answer)
        assert Path(file).is_relative_to(folder)
        assert "data:image/jpeg" in first_photo(address, file, "visitor1")
        assert not [found for found in temporary.rglob("*") if found.is_file()]  # read, and removed
        assert ask(address, f"gradio_api/file={urllib.parse.quote(file)}")[0] == 403
        assert "Give a photo first." in first_photo(address, file, "visitor2")
        for path in (built.path / "model.safetensors", tmp_path / "secret", Path("/etc/passwd")):
            assert ask(address, f"gradio_api/file={urllib.parse.quote(str(path))}")[0] == 403

        status, _ = upload(address, bytes(21 * 2**20))
        assert status == 413
        connection = http.client.HTTPConnection(str(host), port)
        connection.request("GET", "/", headers={"Host": "evil.example"})
        assert connection.getresponse().status == 421
        config = json.loads(ask(address, "config")[1])
        assert config["analytics_enabled"] is False
        assert not config.get("space_id")
    assert not list(temporary.iterdir())
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file != photo_file]


@slow
def test_a_password_is_asked_for(built: Run, photo_file: Path, tmp_path: Path) -> None:
    require_gradio()
    password = tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o600)
    with served("app", built.path, "--auth", f"ada:{password}", "--host", "127.0.0.1", home=tmp_path) as (address, _):
        assert ask(address, "config")[0] == 401
        assert upload(address, photo_file.read_bytes())[0] == 401
        login = urllib.parse.urlencode({"username": "ada", "password": "wrong"}).encode()
        assert ask(address, "login", login)[0] == 400
        right = urllib.parse.urlencode({"username": "ada", "password": "secret"}).encode()
        assert ask(address, "login", right)[0] == 200


def test_options_that_cannot_be_used_are_one_sentence(oneshui: Oneshui, built: Run, tmp_path: Path) -> None:
    require_gradio()
    file = tmp_path / "password"
    file.write_text("secret")
    private = tmp_path / "private"
    private.write_text("secret")
    private.chmod(0o600)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        wrong = {
            "--host 0.0.0.0": "--host 0.0.0.0 lets other machines reach the page, so it needs --auth USER:FILE as well",
            f"--auth ada:{file}": "Others can read the password",
            f"--samples {tmp_path / 'no'}": "name with --samples the folder",
            f"--benchmark {tmp_path / 'no'}": "name another one with --benchmark",
            f"--port {busy.getsockname()[1]}": "is in use, or not yours; name another one with --port",
            f"--host 192.0.2.1 --auth ada:{private}": "is no address of this machine",
            "--port 0": "--port of app must be at least 1",
            "--max-upload-mb 65": "--max-upload-mb of app must be at most 64",
        }
        for words, expected in wrong.items():
            code, _, err = oneshui("app", built.path, *words.split())
            assert (code, expected in sentence(err)) == (2, True), (words, err)


def test_without_gradio_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.app import server

    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'run `pip install "oneshui-hf\[app\]"`'):
        check_app(AppOptions())


@slow
def test_the_pushed_folder_of_a_space_runs_as_it_is_offline(built: Run, photo_file: Path, tmp_path: Path) -> None:
    require_gradio()
    from oneshui_hf.stages.publishing.model import collect_public_files
    from oneshui_hf.stages.publishing.space import write_space

    public, space = tmp_path / "public", tmp_path / "space"
    public.mkdir(), space.mkdir()
    collect_public_files(built, public)
    write_space(space, public, "user/model")
    shutil.rmtree(public)
    before = sorted(file.relative_to(space) for file in space.rglob("*"))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(tmp_path),
        "ONESHUI_VAULT": str(tmp_path / "vault"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=space, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = next(line for line in process.stderr if "The page is at" in line or "Error" in line)
        try:
            address = line.split("The page is at ")[1].split()[0]
            (file,) = json.loads(upload(address, photo_file.read_bytes())[1])
            assert "data:image/jpeg" in first_photo(address, file, "visitor1")
            components: list[Any] = json.loads(ask(address, "config")[1])["components"]
            labels = [one["props"].get("value") for one in components if one["type"] == "button" and one["props"].get("visible")]
            assert labels == ["Try"]
            assert not [one for one in components if one["type"] == "tabitem"]
        finally:
            process.terminate()
            assert process.wait(60) == 0
    assert sorted(file.relative_to(space) for file in space.rglob("*")) == before
    assert not (tmp_path / "vault").exists()
    assert not list(tmp_path.glob("oneshui-app-*"))
