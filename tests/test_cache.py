"""The cache: real processes that use the same entry, killed processes, and folders that are never changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import oneshui_hf.cache as module
from oneshui_hf.cache import Cache, ClearResult, cache_root
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.reporting import Reporter
from support.commands import Oneshui, sentence

MADE_FROM = {"seed": 1, "recipe": {"lr": 0.1, "data set": "é"}}
ABOUT = {"dataset": "synthetic", "seed": 1}


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def make(cache: Cache, kind: str = "oracle", seed: int = 1, size: int = 1000, days: float = 0) -> Path:
    """Make an entry of `size` bytes, last used `days` ago."""
    with cache.entry(kind, {"seed": seed}, {"dataset": "synthetic", "seed": seed}) as folder:
        (folder / "inside").mkdir(parents=True)
        (folder / "inside" / "file").write_bytes(b"x" * size)
    stamp = time.time() - days * 86400
    os.utime(f"{folder}.json", (stamp, stamp))
    return folder


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# Location, and keys of entries.


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("ONESHUI_CACHE", "~/own")
    assert cache_root("/given") == Path("/given")
    assert cache_root("~/given") == tmp_path / "given"
    assert cache_root() == tmp_path / "own"
    monkeypatch.setenv("ONESHUI_CACHE", "")
    assert cache_root() == tmp_path / "xdg" / "oneshui"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / ".cache" / "oneshui"


def test_a_key_is_the_hash_of_the_inputs(tmp_path: Path) -> None:
    text = '{\n  "recipe": {\n    "data set": "é",\n    "lr": 0.1\n  },\n  "seed": 1\n}\n'
    expected = "oracle-" + hashlib.sha256(text.encode()).hexdigest()[:20]
    cache = Cache(tmp_path)
    assert cache.key("oracle", MADE_FROM) == cache.key("oracle", dict(reversed(MADE_FROM.items()))) == expected
    assert cache.key("oracle", MADE_FROM | {"seed": 2}) != expected
    with pytest.raises(UsageError, match=r"^A cache has no entries of kind 'orcale'. Did you mean 'oracle'\?$"):
        cache.key("orcale", MADE_FROM)


# Entering.


def test_an_entry_is_written_by_its_creator_and_described_in_a_json_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "cache")
    with cache.entry("oracle", MADE_FROM, ABOUT) as folder:
        assert not folder.exists()
        folder.mkdir()
        (folder / "half").touch()
    with cache.entry("oracle", MADE_FROM, ABOUT | {"seed": 7}) as again:
        assert again == folder == cache.root / cache.key("oracle", MADE_FROM)
        assert names(folder) == ["half"]
    assert names(cache.root) == sorted([".locks", "CACHE.json", folder.name, f"{folder.name}.json"])
    description = json.loads(Path(f"{folder}.json").read_text())
    assert description == {"key": folder.name, "kind": "oracle", "made_from": MADE_FROM, "about": {"dataset": "synthetic", "seed": 7}}


def test_entries_are_sorted_by_last_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.entries() == []
    assert not cache.root.exists()
    old, new = make(cache, "original", seed=3, size=10, days=2), make(cache, "artefact", size=20, days=1)
    entries = cache.entries()
    assert [(entry.key, entry.kind, entry.bytes - Path(f"{cache.root / entry.key}.json").stat().st_size) for entry in entries] == [
        (new.name, "artefact", 20),
        (old.name, "original", 10),
    ]
    assert entries[1].about == {"dataset": "synthetic", "seed": 3}
    assert entries[1].last_used == pytest.approx(time.time() - 2 * 86400, abs=60)
    with cache.entry("original", {"seed": 3}):  # entering counts as a use
        assert [(entry.kind, entry.locked) for entry in cache.entries()] == [("original", True), ("artefact", False)]
    assert not any(entry.locked for entry in cache.entries())


def test_a_cache_is_private(tmp_path: Path) -> None:
    former = os.umask(0o002)
    try:
        folder = make(Cache(tmp_path / "new" / "cache"))
    finally:
        os.umask(former)
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert Path(f"{folder}.json").stat().st_mode & 0o777 == 0o600  # it contains paths


@pytest.mark.parametrize("description_text", ["", "[]", '{"about": 3}', None])
def test_an_entry_with_a_damaged_description_is_still_listed(tmp_path: Path, description_text: str | None) -> None:
    cache = Cache(tmp_path)
    description = Path(f"{make(cache)}.json")
    description.unlink() if description_text is None else description.write_text(description_text)
    assert [(entry.kind, entry.about) for entry in cache.entries()] == [("oracle", {})]
    assert cache.clear().entries == 1
    assert names(tmp_path) == [".locks", "CACHE.json"]


def test_a_failing_block_releases_the_lock(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(ZeroDivisionError), cache.entry("oracle", MADE_FROM):
        raise ZeroDivisionError
    assert [entry.locked for entry in cache.entries()] == [False]
    with cache.entry("oracle", MADE_FROM):
        pass


# Clearing.


def test_clear_removes_the_chosen_entries(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    make(cache, "oracle", 1, days=10)
    make(cache, "oracle", 2, days=1)
    make(cache, "artefact", 1, days=10)

    def kept() -> list[tuple[str, int]]:
        return sorted((entry.kind, entry.about["seed"]) for entry in cache.entries())

    whole = sum(entry.bytes for entry in cache.entries())
    assert cache.clear(["original"]) == cache.clear(older_than_days=11) == ClearResult(0, 0, 0)
    would = cache.clear(dry_run=True)
    assert (would.entries, would.bytes, len(kept())) == (3, whole, 3)
    first = cache.clear(["oracle"], older_than_days=5)
    assert first.entries == 1
    assert kept() == [("artefact", 1), ("oracle", 2)]
    second = cache.clear(older_than_days=0)
    assert (second.entries, first.bytes + second.bytes) == (2, whole)
    assert names(tmp_path) == [".locks", "CACHE.json"]
    assert cache.clear() == ClearResult(0, 0, 0)


@pytest.mark.parametrize("entry_exists", [True, False])
def test_secrets_are_removed_with_their_entry(tmp_path: Path, entry_exists: bool) -> None:
    cache = Cache(tmp_path)
    folder, other = make(cache, "artefact", seed=1, days=9), make(cache, "artefact", seed=2)
    for entry in (folder, other):
        (tmp_path / f"{entry.name}.vault" / "one").mkdir(parents=True)
        (tmp_path / f"{entry.name}.vault" / "one" / "artefact.key").write_bytes(b"s" * 32)
    (found,) = (entry.bytes for entry in cache.entries() if entry.key == folder.name)
    assert found == 1000 + 32 + Path(f"{folder}.json").stat().st_size
    if not entry_exists:  # the entry was removed by hand, without its secrets
        shutil.rmtree(folder)
    assert cache.clear(older_than_days=5).entries == 1
    assert names(tmp_path) == sorted([".locks", "CACHE.json", other.name, f"{other.name}.json", f"{other.name}.vault"])


def test_clear_keeps_entries_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    make(cache, "oracle", 2)
    with cache.entry("oracle", MADE_FROM) as folder:
        scratch = tmp_path / f".{folder.name}.abc"
        scratch.mkdir()
        found = cache.clear()
        assert (found.entries, found.in_use) == (1, 1)
        assert cache.clear(["original"]).in_use == cache.clear(older_than_days=1).in_use == 0
        assert scratch.exists()
        assert Path(f"{folder}.json").exists()
    assert (cache.clear().entries, names(tmp_path)) == (1, [".locks", "CACHE.json"])


def test_clear_removes_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    folder = make(cache, "oracle", 1)
    key = cache.key("original", {"seed": 9})  # an entry with temporary files only
    for name in (f".{key}.x1", f".{folder.name}.x2.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_bytes(b"x" * 100)
    (tmp_path / f".{folder.name}.json.x3").write_bytes(b"x" * 10)
    (tmp_path / ".mine").touch()
    (tmp_path / f"notes-{folder.name}").touch()
    assert [entry.kind for entry in cache.entries()] == ["oracle"]
    assert cache.clear(older_than_days=1, dry_run=True) == cache.clear(older_than_days=1) == ClearResult(0, 210, 0)
    remaining = sorted([".locks", ".mine", "CACHE.json", folder.name, f"{folder.name}.json", f"notes-{folder.name}"])
    assert names(tmp_path) == remaining
    assert (folder / "inside" / "file").exists()


def test_an_entry_is_hidden_before_its_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    make(cache, size=1000)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        cache.clear()
    assert cache.entries() == []
    assert cache.clear().bytes > 1000
    assert names(tmp_path) == [".locks", "CACHE.json"]


def test_a_link_is_removed_and_its_target_is_kept(tmp_path: Path) -> None:
    cache, elsewhere = Cache(tmp_path / "cache"), tmp_path / "elsewhere"
    folder = make(cache)
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    (cache.root / f".{folder.name}.x").symlink_to(elsewhere)
    assert cache.clear().entries == 1
    assert names(cache.root) == [".locks", "CACHE.json"]
    assert (elsewhere / "inside" / "file").exists()


# Folders that are not a cache.


def all_calls(cache: Cache) -> Iterator[Callable[[], object]]:
    yield lambda: cache.entry("oracle", MADE_FROM).__enter__()
    yield lambda: cache.clear()
    yield lambda: cache.entries()


def test_a_folder_with_other_files_is_never_changed(tmp_path: Path) -> None:
    precious = tmp_path / f"oracle-{'0' * 20}"
    precious.mkdir()
    for call in all_calls(Cache(tmp_path)):
        with pytest.raises(UsageError, match="is not a cache and contains other files, so nothing was changed"):
            call()
    assert names(tmp_path) == [precious.name]


@pytest.mark.parametrize("inside", [(), ("deeper", "still")])
def test_a_file_is_refused_as_a_cache(tmp_path: Path, inside: tuple[str, ...]) -> None:
    file = tmp_path / "file"
    file.touch()
    for call in all_calls(Cache(file.joinpath(*inside))):
        with pytest.raises(UsageError, match=r"/file is a file; name another folder for the cache\.$"):
            call()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('{"size": 3}', UsageError, "contains other files"),
        ('{"what": "models and preparations kept by oneshui", "format": 2}', OneshuiError, "upgrade oneshui-hf"),
        ("", OneshuiError, "is not JSON"),
    ],
)
def test_a_marker_of_another_program_or_a_later_version_is_refused(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    (tmp_path / "CACHE.json").write_text(text)
    for call in all_calls(Cache(tmp_path)):
        with pytest.raises(error, match=words):
            call()
    assert names(tmp_path) == ["CACHE.json"]


def test_an_empty_folder_becomes_a_cache(tmp_path: Path) -> None:
    (tmp_path / ".CACHE.json.x").touch()  # of a process that was killed while it created the cache
    assert Cache(tmp_path).entries() == []
    assert Cache(tmp_path).clear() == ClearResult(0, 0, 0)
    make(Cache(tmp_path))
    assert len(Cache(tmp_path).entries()) == 1


def test_wrong_days_and_kinds_are_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for days in (-1, float("nan")):
        with pytest.raises(UsageError, match="give a number that is 0 or more"):
            cache.clear(older_than_days=days)
    with pytest.raises(UsageError, match="A cache has no entries of kind 'orcale'"):
        cache.clear(["oracle", "orcale"])


# Several processes.

PROCESS = """
import os, sys, time
from pathlib import Path
from oneshui_hf.cache import Cache
from oneshui_hf.reporting import Reporter

class Notes(Reporter):
    def note(self, message):
        print(message, flush=True)

root, work = Path(sys.argv[1]), sys.argv[2]
with Cache(root / "cache").entry("oracle", {"seed": 1}, reporter=Notes()) as folder:
    print("in", flush=True)
    if work == "hold":
        time.sleep(60)
    if not (folder / "done").exists():
        folder.mkdir(exist_ok=True)
        with (root / "log").open("a") as log:
            log.write("made\\n")
        time.sleep(0.3)
        (folder / "done").touch()
"""


def start(root: Path, work: str = "make") -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROCESS, str(root), work], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_one_process_makes_an_entry_that_several_need(tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(4)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert (tmp_path / "log").read_text() == "made\n"
    assert all(out.count("waiting") <= 1 and out.count("in\n") == 1 for out, _ in outputs)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    holder = start(tmp_path, "hold")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    cache = Cache(tmp_path / "cache")
    assert [entry.locked for entry in cache.entries()] == [True]
    assert cache.clear() == ClearResult(0, 0, 1)
    other = start(tmp_path)
    assert other.stdout is not None
    line = other.stdout.readline()
    assert line.startswith("Another process is using the same oracle (oracle-")
    time.sleep(1.2)  # two more attempts, which are not reported
    assert other.poll() is None
    holder.send_signal(signal.SIGKILL)
    out, err = other.communicate(timeout=30)
    assert (other.returncode, out) == (0, "in\n"), err
    holder.communicate()
    assert (tmp_path / "log").read_text() == "made\n"


def test_waiting_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, notes, tries = Cache(tmp_path), Notes(), 0
    outer = cache.entry("oracle", MADE_FROM)
    outer.__enter__()

    def sleep(seconds: float) -> None:
        nonlocal tries
        assert seconds == 0.5
        if (tries := tries + 1) == 5:
            outer.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", sleep)
    with cache.entry("oracle", MADE_FROM, reporter=notes):
        assert (tries, len(notes.notes)) == (5, 1)


USER = """
import sys
from pathlib import Path
import oneshui_hf.cache as module

module.POLL = 0.001
made = 0
for _ in range(60):
    with module.Cache(sys.argv[1]).entry("oracle", {"seed": 1}) as folder:
        if not folder.exists():
            folder.mkdir()
            (folder / "file").touch()
            made += 1
        assert (folder / "file").exists() and Path(f"{folder}.json").exists()
print(made)
"""


def test_clearing_during_use_removes_nothing_in_use(tmp_path: Path) -> None:
    users = [
        subprocess.Popen([sys.executable, "-c", USER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    cleared = 0
    while any(user.poll() is None for user in users):
        cleared += Cache(tmp_path).clear().entries
        Cache(tmp_path).entries()
    outputs = [user.communicate() for user in users]
    assert [user.returncode for user in users] == [0, 0], outputs
    assert cleared >= 1
    assert sum(int(out) for out, _ in outputs) in (cleared, cleared + 1)


LAUNCHED = """
import sys, time
from pathlib import Path
from accelerate import Accelerator
from oneshui_hf.cache import Cache
from oneshui_hf.errors import UsageError
from oneshui_hf.reporting import Reporter

class Notes(Reporter):
    def note(self, message):
        (root / f"note-{rank}").open("a").write("waiting\\n")

accelerator, root = Accelerator(cpu=True), Path(sys.argv[1])
rank = accelerator.process_index
(root / f"started-{rank}").touch()
with Cache(root / "cache").entry("oracle", {"seed": 1}, accelerator=accelerator, reporter=Notes()) as folder:
    assert (root / "released").exists()
    (root / f"in-{rank}").touch()
    if not accelerator.is_main_process:
        time.sleep(1)  # the main process must not release the lock before this one is done
        assert [entry.locked for entry in Cache(root / "cache").entries()] == [True]
accelerator.wait_for_everyone()
if accelerator.is_main_process:  # one process only: checking a lock acquires it for a moment, which another check would see
    assert [entry.locked for entry in Cache(root / "cache").entries()] == [False]
accelerator.wait_for_everyone()
try:
    with Cache(root).entry("oracle", {"seed": 1}, accelerator=accelerator):
        pass
except UsageError as error:
    (root / f"error-{rank}").write_text(str(error))
accelerator.wait_for_everyone()
accelerator.end_training()
"""


@pytest.mark.slow
def test_the_processes_of_a_launch_enter_and_leave_together(tmp_path: Path) -> None:
    root, script = tmp_path / "root", tmp_path / "launched.py"
    root.mkdir()
    script.write_text(LAUNCHED)
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with Cache(root / "cache").entry("oracle", {"seed": 1}):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(root)]
        launched = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        end = time.monotonic() + 120
        while not (root / "note-0").exists() and launched.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)
        assert not list(root.glob("in-*"))
        (root / "released").touch()
    _, err = launched.communicate(timeout=120)
    assert launched.returncode == 0, err[-3000:]
    assert (root / "note-0").read_text() == (root / "note-1").read_text() == "waiting\n"
    assert (root / "error-0").read_text() == (root / "error-1").read_text()
    assert "is not a cache and contains other files" in (root / "error-1").read_text()


# The command.


def test_cache_list_and_clear_commands(oneshui: Oneshui, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    code, out, _ = oneshui("cache", "list", "--cache-dir", cache.root)
    assert (code, out) == (0, f"The cache {cache.root} is empty.\n")
    make(cache, "oracle", seed=12, size=2_500_000, days=40)
    make(cache, "artefact", seed=3, size=1_000_000)
    code, out, _ = oneshui("cache", "list", "--cache-dir", cache.root)
    rows = [line.split() for line in out.splitlines() if "synthetic" in line]
    assert code == 0
    assert [row[:4] for row in rows] == [["artefact", "synthetic", "3", "1.0"], ["oracle", "synthetic", "12", "2.5"]]
    assert f"2 entries in {cache.root}, 3.5 MB." in out
    with cache.entry("artefact", {"seed": 3}, ABOUT):
        assert oneshui("cache", "list", "--cache-dir", cache.root)[1].count("now") == 1
        code, out, _ = oneshui("cache", "clear", "--cache-dir", cache.root, "--dry-run")
        assert (code, out) == (0, f"Would remove 1 entry of {cache.root}, 2.5 MB.\n1 in use by another process, not removed.\n")
    listed = json.loads(oneshui("cache", "list", "--cache-dir", cache.root, "--json")[1])
    assert listed["cache"] == str(cache.root)
    assert set(listed["entries"][0]) == {"key", "kind", "about", "bytes", "last_used", "locked"}
    assert listed["entries"][1]["last_used"].endswith("+00:00")
    assert oneshui("cache", "clear", "--cache-dir", cache.root, "--kind", "artefact", "--older-than", 30)[1].startswith("Removed 0 entries")
    code, out, _ = oneshui("cache", "clear", "--cache-dir", cache.root, "--older-than", 30, "--json")
    assert (code, json.loads(out)["entries"], json.loads(out)["in_use"]) == (0, 1, 0)
    assert [entry.kind for entry in cache.entries()] == ["artefact"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "orcale"], "must be one of original, oracle, fold, artefact, unlearned, not 'orcale'. Did you mean 'oracle'?"),
        (["--older-than", "-1"], "--older-than of cache clear must be at least 0, not -1.0."),
        (["--older-than", "nan"], "--older-than of cache clear takes a number, not 'nan'."),
        (["--cache-dir", "FILE"], "is a file; name another folder for the cache."),
        (["--cache-dir", "HOME"], "is not a cache and contains other files, so nothing was changed; name another folder, or an empty one."),
    ],
)
def test_wrong_input_is_reported_in_one_sentence(oneshui: Oneshui, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "file").touch()
    places = {"FILE": tmp_path / "file", "HOME": tmp_path}
    code, out, err = oneshui("cache", "clear", *(places.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert sentence(err).endswith(message)
    assert names(tmp_path) == ["file"]


def test_cache_list_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['oneshui', 'cache', 'list', '--cache-dir', {str(tmp_path)!r}]\n"
        "from oneshui_hf.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
