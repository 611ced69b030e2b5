"""The injection of faults: every file operation is counted, and the chosen one kills the process or fails."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from drill.injection import NETWORK, Action, Fault, compile_shim, read_log

TESTS = Path(__file__).parent.parent

TOY = """
    import os
    from pathlib import Path
    (root / "folder").mkdir()
    handle = os.open(root / "folder/new", os.O_WRONLY | os.O_CREAT)
    os.write(handle, b"0123456789")
    os.fsync(handle)
    os.close(handle)
    os.rename(root / "folder/new", root / "folder/file")
    os.unlink(root / "folder/file")
    os.rmdir(root / "folder")
    elsewhere = root.parent / "elsewhere"
    elsewhere.write_text("not watched")
    elsewhere.unlink()
"""
OPERATIONS = [
    *(("mkdir", "folder"), ("create", "folder/new"), ("write", "folder/new"), ("sync", "folder/new")),
    *(("rename", "folder/file"), ("unlink", "folder/file"), ("unlink", "folder")),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = compile_shim(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("there is no C compiler")
    return library


def run(folder: Path, body: str, fault: Fault, shim: Path | None) -> tuple[int, list[tuple[str, str]], str]:
    """Run a script with a fault; return its exit code, its operations, and what it printed."""
    root, log = folder / "root", folder / "log"
    root.mkdir(exist_ok=True)
    start = f"""
        from pathlib import Path
        from drill.injection import Action, Fault, arm
        root = Path({str(root)!r})
        arm(Fault(Action({int(fault.action)}), {fault.target}, {fault.error}), [str(root)], Path({str(log)!r}))
    """
    environment = os.environ | {"PYTHONPATH": str(TESTS)} | ({"LD_PRELOAD": str(shim)} if shim else {})
    script = textwrap.dedent(start) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    found = [(operation.kind, operation.path.removeprefix(f"{root}/")) for operation in read_log(log)]
    return done.returncode, found, done.stdout + done.stderr


def test_the_shim_counts_every_operation_below_its_root(tmp_path: Path, shim: Path) -> None:
    assert run(tmp_path, TOY, Fault(), shim) == (0, OPERATIONS, "")


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are resolved below /proc")


@ON_LINUX
def test_the_hooks_of_python_count_all_but_writes(tmp_path: Path) -> None:
    assert run(tmp_path, TOY, Fault(), None) == (0, [operation for operation in OPERATIONS if operation[0] != "write"], "")


def test_safetensors_writes_through_the_counted_functions(tmp_path: Path, shim: Path) -> None:
    body = """
        import numpy as np
        from safetensors.numpy import save_file
        save_file({"a": np.zeros(100_000)}, root / "a.safetensors")
    """
    code, found, _ = run(tmp_path, body, Fault(), shim)
    assert code == 0
    assert {"create", "write"} <= {kind for kind, _ in found}


@pytest.mark.parametrize("number", range(1, len(OPERATIONS) + 1))
def test_a_kill_happens_at_the_chosen_operation(tmp_path: Path, shim: Path, number: int) -> None:
    code, found, _ = run(tmp_path, TOY, Fault(Action.KILL, number), shim)
    assert code == -signal.SIGKILL
    assert found == OPERATIONS[:number]
    left = sorted(path.relative_to(tmp_path / "root").as_posix() for path in (tmp_path / "root").rglob("*"))
    expected = {1: [], 2: ["folder"], 6: ["folder", "folder/file"], 7: ["folder"]}
    assert left == expected.get(number, ["folder", "folder/new"])


def test_a_killed_write_is_torn(tmp_path: Path, shim: Path) -> None:
    run(tmp_path, TOY, Fault(Action.KILL, 3), shim)
    assert (tmp_path / "root/folder/new").read_bytes() == b"01234"


@ON_LINUX
def test_the_hooks_of_python_kill_too(tmp_path: Path) -> None:
    code, found, _ = run(tmp_path, TOY, Fault(Action.KILL, 4), None)
    assert code == -signal.SIGKILL
    assert found[-1][0] == "rename"
    assert (tmp_path / "root/folder/new").exists()


FAILING = """
    import errno, os
    from pathlib import Path
    def attempt(call, *arguments):
        try:
            call(*arguments)
            print("done")
        except OSError as error:
            print(errno.errorcode[error.errno])
    (root / "old").write_text("old")
    for name in ("a", "b"):
        attempt((root / name).write_text, "0123456789")
    attempt((root / "old").unlink)
"""


@pytest.mark.parametrize(
    ("fault", "printed"),
    [
        (Fault(), "done done done"),
        (Fault(Action.FAIL_FROM_HERE, 3, errno.ENOSPC), "ENOSPC ENOSPC done"),  # a full disk: what needs no space goes on
        (Fault(Action.FAIL_FROM_HERE, 4, errno.ENOSPC), "ENOSPC ENOSPC done"),
        (Fault(Action.FAIL_ONCE, 3, errno.EIO), "EIO done done"),
        (Fault(Action.FAIL_ONCE, 7, errno.EACCES), "done done EACCES"),
    ],
)
def test_chosen_operations_fail(tmp_path: Path, shim: Path, fault: Fault, printed: str) -> None:
    assert run(tmp_path, FAILING, fault, shim)[2].split() == printed.split()


def test_a_full_disk_writes_a_part_first(tmp_path: Path, shim: Path) -> None:
    run(tmp_path, FAILING, Fault(Action.FAIL_FROM_HERE, 4, errno.ENOSPC), shim)
    assert (tmp_path / "root/a").read_bytes() == b"01234"


@pytest.mark.parametrize("preloaded", [True, False])
def test_the_network_is_refused_and_logged(tmp_path: Path, shim: Path, preloaded: bool) -> None:
    body = """
        import socket
        try:
            socket.create_connection(("example.invalid", 80))
        except OSError:
            print("refused")
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            print("loopback")
    """
    code, found, printed = run(tmp_path, body, Fault(), shim if preloaded else None)
    assert (code, printed.split()) == (0, ["refused", "loopback"])
    assert found == [(NETWORK, "example.invalid")]
