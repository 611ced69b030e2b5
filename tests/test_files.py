"""Writes of files and folders: atomic, with the user's umask, one writer at a time, and without leftovers of killed processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshui_hf.errors import OneshuiError
from oneshui_hf.files import clear_leftovers, is_locked, lock_output, new_folder, scratch_folder, write_bytes


def raise_disk_full(*arguments: object, **settings: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_failing_write_keeps_the_old_file_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "a.json"
    write_bytes(file, b"old")
    monkeypatch.setattr(os, call, raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_created_when_its_block_succeeds(tmp_path: Path) -> None:
    folder = tmp_path / "runs/one"
    with new_folder(folder) as scratch:
        (scratch / "file").write_text("x")
        assert not folder.exists()
    assert (folder / "file").read_text() == "x"
    assert list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "one") as scratch:
        (scratch / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_failing_block_keeps_the_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("x")
    with pytest.raises(ValueError), new_folder(tmp_path / "one", replace=True) as scratch:
        (scratch / "new").write_text("y")
        raise ValueError
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["old"]
    assert [f.name for f in tmp_path.iterdir()] == ["one"]


def test_a_replaced_folder_contains_only_new_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("x")
    with new_folder(tmp_path / "one", replace=True) as scratch:
        (scratch / "new").write_text("y")
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["new"]
    assert [f.name for f in tmp_path.iterdir()] == ["one"]


def test_a_failing_rename_keeps_the_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("x")
    real = os.rename

    def refuse(source: str, target: str) -> None:
        if Path(source, "new").exists():
            raise_disk_full()
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="No space left"), new_folder(tmp_path / "one", replace=True) as scratch:
        (scratch / "new").write_text("y")
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["old"]


def test_an_existing_folder_is_not_replaced_by_default(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("x")
    with pytest.raises(OneshuiError, match="another process created it"), new_folder(tmp_path / "one") as scratch:
        (scratch / "new").write_text("y")
    assert [f.name for f in tmp_path.iterdir()] == ["one"]
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["old"]


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def test_the_umask_decides_who_can_read_what_is_not_private(tmp_path: Path, umask: int) -> None:
    write_bytes(tmp_path / "public", b"x")
    write_bytes(tmp_path / "private", b"x", private=True)
    with new_folder(tmp_path / "shared"), new_folder(tmp_path / "own", private=True):
        pass
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"public": 0o666 & ~umask, "private": 0o600 & ~umask, "shared": 0o777 & ~umask, "own": 0o700 & ~umask}


def killed(tmp_path: Path, call: str, body: str) -> None:
    """Run a body in another process, which is killed when it enters a call."""
    code = f"""
        import os, pathlib, signal, shutil
        from pathlib import Path
        from oneshui_hf import files
        from oneshui_hf.files import *
        folder = Path({str(tmp_path)!r})
        def die(*arguments, **settings):
            os.kill(os.getpid(), signal.SIGKILL)
        def arm():
            {call} = die
    """
    script = textwrap.dedent(code) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


NEW_FOLDER = """
    with files.new_folder(folder / "one", replace=True) as scratch:
        (scratch / "new").write_text("new")
        arm()
"""


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("os.fsync", "old"),
        ("pathlib.Path.rename", "old"),
        ("files.sync_folder", "old"),
        ("shutil.rmtree", "new"),
    ],
)
def test_what_a_killed_writer_left_is_cleared_and_a_replaced_folder_is_restored(tmp_path: Path, call: str, found: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("old")
    killed(tmp_path, call, NEW_FOLDER)
    assert len(list(tmp_path.iterdir())) > 1
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == [found]


def test_a_folder_of_which_only_the_replaced_copy_is_left_is_restored(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("old")
    body = """
        real = os.rename
        def second(source, target):
            if str(source).endswith("partial"):
                die()
            real(source, target)
        os.rename = second
    """
    killed(tmp_path, "files.unused", body + NEW_FOLDER)
    assert not (tmp_path / "one").exists()
    assert clear_leftovers(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one/old").read_text() == "old"


def test_the_next_writer_of_the_same_name_clears_it_too(tmp_path: Path) -> None:
    killed(tmp_path, "os.fsync", 'arm()\nwrite_bytes(folder / "a.json", b"x")')
    killed(tmp_path, "os.fsync", NEW_FOLDER)
    with new_folder(tmp_path / "one"):
        pass
    with lock_output(tmp_path / "a.json"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_killed_writer_of_a_scratch_folder_leaves_nothing_that_is_not_cleared(tmp_path: Path) -> None:
    killed(tmp_path, "files.unused", 'with scratch_folder(folder, "push") as scratch:\n    (scratch / "a").mkdir()\n    die()')
    assert list(tmp_path.iterdir())
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with scratch_folder(tmp_path, "push") as scratch:
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert clear_leftovers(tmp_path) == 0
        assert scratch.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_living_writer_is_not_disturbed(tmp_path: Path) -> None:
    body = """
        from pathlib import Path
        import sys
        from oneshui_hf.files import new_folder
        with new_folder(Path(sys.argv[1]) / "one") as scratch:
            (scratch / "file").write_text("x")
            print("ready", flush=True)
            sys.stdin.readline()
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdin and writer.stdout
    assert writer.stdout.readline() == "ready\n"
    assert clear_leftovers(tmp_path) == 0
    assert is_locked(tmp_path / "one")
    with pytest.raises(OneshuiError, match="Another process is writing"), new_folder(tmp_path / "one"):
        pass
    writer.communicate("\n")
    assert not is_locked(tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one/file").read_text() == "x"


def test_who_waited_for_another_writer_does_not_replace_what_it_wrote(tmp_path: Path) -> None:
    body = """
        import sys, time
        from pathlib import Path
        from oneshui_hf.files import new_folder
        with new_folder(Path(sys.argv[1]) / "one", replace=True) as scratch:
            (scratch / "file").write_text("first")
            print("ready", flush=True)
            time.sleep(0.2)
    """
    (tmp_path / "one").mkdir()
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(body), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    assert writer.stdout.readline() == "ready\n"
    with pytest.raises(OneshuiError, match="Another process"), new_folder(tmp_path / "one", replace=True):
        pass
    writer.communicate()
    assert (tmp_path / "one/file").read_text() == "first"
    with new_folder(tmp_path / "one", replace=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_process_may_enter_its_own_lock_again(tmp_path: Path) -> None:
    with lock_output(tmp_path / "a/b"):
        with new_folder(tmp_path / "a/b") as scratch:
            assert clear_leftovers(tmp_path / "a") == 0
            assert scratch.is_dir()
        write_bytes(tmp_path / "a/b/c", b"x")
        assert (tmp_path / "a/.b.oneshui-lock").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_folder_has_one_lock_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one/two").mkdir(parents=True)
    (tmp_path / "link").symlink_to("one")
    monkeypatch.chdir(tmp_path / "one")
    for path in (Path(), Path("two/.."), Path("../one"), tmp_path / "link/.." / "one", tmp_path / "one"):
        with lock_output(path):
            assert sorted(place.name for place in tmp_path.iterdir()) == [".one.oneshui-lock", "link", "one"]
    assert [place.name for place in (tmp_path / "one").iterdir()] == ["two"]


def test_folders_made_for_a_lock_do_not_stay(tmp_path: Path) -> None:
    with lock_output(tmp_path / "a/b/c"):
        assert (tmp_path / "a/b").is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".one.backup", ".one.12345678", "one.12345678.partial", ".gitignore", ".one.lock", ".one.two.lock"])
def test_other_files_are_never_cleared(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert clear_leftovers(tmp_path) == 0
    with lock_output(tmp_path / "one"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_that_begin_alike_are_distinguished(tmp_path: Path) -> None:
    with new_folder(tmp_path / "one.two") as scratch, lock_output(tmp_path / "one"):
        assert scratch.is_dir()


def test_what_is_replaced_is_discarded_by_the_callers_function(tmp_path: Path) -> None:
    discarded: list[str] = []

    def discard(path: Path) -> None:
        discarded.append((path / "name").read_text())
        (path / "name").unlink()
        path.rmdir()

    for name in ("first", "second"):
        with new_folder(tmp_path / "one", replace=True, discard=discard) as scratch:
            (scratch / "name").write_text(name)
    with pytest.raises(ValueError), new_folder(tmp_path / "one", replace=True, discard=discard) as scratch:
        (scratch / "name").write_text("third")
        raise ValueError
    assert discarded == ["first", "third"]
    assert (tmp_path / "one/name").read_text() == "second"
