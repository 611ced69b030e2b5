"""Failures of the machine and of the process around a command: disk, permissions, pipes, closed streams, signals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.cli.app import app
from oneshui_hf.cli.errors import guarded
from support.commands import Oneshui, sentence

MAIN = "import sys\nfrom oneshui_hf.cli import main\nmain()"
NEEDS_UNIX = pytest.mark.skipif(os.name == "nt", reason="signals and closed streams of Unix")


def run(*words: str, code: str = MAIN, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code, *words], timeout=60, **settings)


def failing(number: int) -> Any:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/disk/file")

    return call


FULL = "There is no space left on the device (/disk/file); free some, then "
WITH_RESUME = "continue with --resume, or run the same command again if there is nothing to resume."


@pytest.mark.parametrize(
    ("words", "function", "advice"),
    [
        (["train", "--dataset", "synthetic"], "train", WITH_RESUME),
        (["retrain", "run"], "retrain", WITH_RESUME),
        (["prepare", "run"], "prepare_artefact", WITH_RESUME),
        (["tune", "run"], "tune", WITH_RESUME),
        (["benchmark", "demo"], "benchmark", "run the same command again."),
        (["unlearn", "run", "--image", "a.jpg"], "unlearn", "run the same command again."),
        (["pull", "a/b"], "pull", "run the same command again."),
    ],
)
def test_advice_after_a_full_disk_fits_the_command(
    oneshui: Oneshui, monkeypatch: pytest.MonkeyPatch, words: list[str], function: str, advice: str
) -> None:
    from support.all_commands import COMMANDS

    command = next(command for command in COMMANDS if command.path == words[0])
    monkeypatch.setitem(command.__dict__, "call", failing(errno.ENOSPC))
    code, out, err = oneshui(*words)
    assert (code, out, err) == (1, "", f"Error: {FULL}{advice}\n")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EMFILE, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG])
def test_other_failures_of_the_machine_are_not_called_a_full_disk(oneshui: Oneshui, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    from support.all_commands import COMMANDS

    command = next(command for command in COMMANDS if command.path == "runs")
    monkeypatch.setitem(command.__dict__, "call", failing(number))
    code, _, err = oneshui("runs")
    assert code == 1
    assert "/disk/file" in sentence(err)
    assert "no space" not in err
    assert "damaged" not in err


def test_a_cache_without_permission_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    from oneshui_hf.data.load import load_faces

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    faces = load_faces("synthetic")
    with monkeypatch.context() as patch:
        patch.setattr(datasets.DatasetBuilder, "as_dataset", failing(errno.EACCES))
        with pytest.raises(PermissionError):
            load_faces("synthetic")
    (faces.cache / "dataset_info.json").write_text("{")
    with pytest.raises(Exception, match="is damaged") as raised:
        load_faces("synthetic")
    assert f"The Arrow data in {tmp_path / 'synthetic'} is damaged" in str(raised.value)  # not the caches of all data sets


def test_an_error_of_the_command_line_outside_of_a_command_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(failing(errno.EROFS)) == 1
    assert capsys.readouterr().err == "Error: The file system of /disk/file can only be read; name another place.\n"
    with pytest.raises(KeyError):  # an error of the program itself
        guarded(lambda: {}["x"])


def test_ctrl_c_is_one_sentence_wherever_it_comes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert guarded(stop) == 130
    monkeypatch.setattr("oneshui_hf.cli.app.api.installed", stop)
    assert guarded(lambda: app(["methods"], standalone_mode=False)) == 130
    assert capsys.readouterr().err == "Error: Stopped.\n" * 2


@NEEDS_UNIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_end_a_command_in_order(tmp_path: Path, name: str) -> None:
    code = """
        import signal, sys, time
        from pathlib import Path
        from oneshui_hf import files
        from oneshui_hf.cli import main
        sys.path.insert(0, sys.argv.pop(1))
        from support.all_commands import COMMANDS
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and so would the command
        def wait(**_):
            with files.new_folder(Path("run")):
                print("ready", flush=True)
                time.sleep(60)
        next(command for command in COMMANDS if command.path == "runs").__dict__["call"] = wait
        main()
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent.parent), "runs"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    number = getattr(signal, name)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == "Error: Stopped; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []  # nothing is left


@NEEDS_UNIX
def test_a_reader_that_ends_early_is_no_error(tmp_path: Path) -> None:
    for command in ("--help", "methods", "methods --json", "data list"):
        script = f"{sys.executable} -c '{MAIN}' {command} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path)
        assert (done.returncode in (0, 1), done.stderr) == (True, b""), command


@NEEDS_UNIX
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(tmp_path: Path, closed: str) -> None:
    for command, expected in (("methods", 0), ("runs", 0), ("runs /nowhere", 2)):
        script = f"{sys.executable} -c '{MAIN}' {command} {closed}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path)
        assert done.returncode == expected, done.stderr
        assert b"Traceback" not in done.stderr


@NEEDS_UNIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_a_full_disk_under_stdout_is_one_sentence(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run("methods", stdout=full, stderr=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["Error: There is no space left on the device; free some, then run the command again."]


def test_a_traceback_is_printed_safely(tmp_path: Path) -> None:
    code = "from oneshui_hf.cli.errors import prepare_process\nprepare_process()\nraise ValueError('a\\x1b[31mb\\u202e')"
    done = run(code=code, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "ValueError: a\\x1b[31mb\\u202e"
