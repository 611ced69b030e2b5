"""The ledger: an independent verification, every mutation, torn lines, the anchor, the clock, and two processes that append."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from oneshui_hf.desk.desk import Desk
from oneshui_hf.desk.entries import CLOCK_WENT_BACK, LINE_WAS_COMPLETED, LINE_WAS_CUT, Draft
from oneshui_hf.desk.receipts import receipt_file
from oneshui_hf.desk.signing import SigningKey, canonical_json
from oneshui_hf.desk.verification import verify
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.vault import Secrets
from support.desk import NAME, PHOTO, full_desk, later, new_desk, receive


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return full_desk(tmp_path_factory.mktemp("made"))


@pytest.fixture
def desk(made: Desk, tmp_path: Path) -> Desk:
    """A copy of the desk, with the vault of the original."""
    shutil.copytree(made.folder.parent, tmp_path / "copy")
    return new_desk(tmp_path / "copy")


def lines(desk: Desk) -> list[bytes]:
    return desk.ledger.file.read_bytes().split(b"\n")[:-1]


def problems(desk: Desk, **options: Any) -> list[str]:
    return list(verify(desk.ledger.file, **options)["problems"])


def test_an_independent_program_verifies_the_chain_and_the_receipts(desk: Desk) -> None:
    previous, key = "0" * 64, None
    receipts = {}
    for number, line in enumerate(lines(desk), 1):
        entry = json.loads(line)
        signature = bytes.fromhex(entry.pop("signature"))
        key = key or Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry["content"]["public_key"]))
        key.verify(signature, json.dumps(entry, sort_keys=True, separators=(",", ":")).encode())
        assert (entry["number"], entry["previous"]) == (number, previous)
        previous = hashlib.sha256(line).hexdigest()
        if entry["kind"] == "applied":
            receipts[entry["request"]] = entry["content"]["receipt"]
    assert key is not None
    assert sorted(receipts) == ["R-000001", "R-000002"]
    for request, digest in receipts.items():
        data = receipt_file(desk.folder, request).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        receipt = json.loads(data)
        signature = bytes.fromhex(receipt.pop("signature"))
        key.verify(signature, json.dumps(receipt, sort_keys=True, separators=(",", ":")).encode())
        with pytest.raises(InvalidSignature):
            key.verify(signature, json.dumps(receipt | {"due": "2027-01-01"}, sort_keys=True, separators=(",", ":")).encode())
    found = verify(desk.ledger.file)
    assert (found["problems"], found["head"], found["entries"], found["requests"]) == ([], previous, len(lines(desk)), 5)


def mutated(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    match rng.randrange(3):
        case 0:
            return data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :]
        case 1:
            return data[:place] + data[place + 1 :]
        case _:
            return data[:place] + bytes([rng.randrange(256)]) + data[place:]


def test_every_mutation_of_a_byte_is_found(desk: Desk) -> None:
    rng, missed = random.Random(21), []
    files = [desk.ledger.file, *(receipt_file(desk.folder, id) for id in ("R-000001", "R-000002"))]
    for number in range(600):
        file = files[0] if number % 2 else files[1 + number // 2 % 2]
        before = file.read_bytes()
        after = mutated(before, rng)
        file.write_bytes(after)
        if after != before and not problems(desk):
            missed.append((file.name, number))
        if after != before and file != files[0]:
            assert verify(file)["problems"]
        file.write_bytes(before)
    assert not missed
    assert not problems(desk)


def test_every_byte_of_one_entry_is_protected(desk: Desk) -> None:
    data = desk.ledger.file.read_bytes()
    start = data.index(b"\n") + 1
    for place in range(start, data.index(b"\n", start) + 1, 7):
        desk.ledger.file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert any("line 2" in problem for problem in problems(desk)), place


@pytest.mark.parametrize("kept", range(1, 5))
def test_a_cut_ledger_is_found_with_the_anchor_only(desk: Desk, kept: int) -> None:
    anchor = verify(desk.ledger.file)["head"]
    shutil.rmtree(desk.folder / "receipts")
    desk.ledger.file.write_bytes(b"".join(line + b"\n" for line in lines(desk)[:kept]))
    assert not problems(desk)
    assert problems(desk, anchor=anchor) == [f"No line of {desk.ledger.file} has the hash of the anchor: the ledger was cut or rewritten."]


def test_an_anchor_of_an_earlier_entry_holds_later(desk: Desk) -> None:
    anchor = hashlib.sha256(lines(desk)[4]).hexdigest()
    assert not problems(desk, anchor=anchor)
    with pytest.raises(UsageError, match="--anchor takes the hash of an entry, 64 hexadecimal digits, not 'x'"):
        verify(desk.ledger.file, anchor="x")


def test_a_ledger_that_its_owner_rewrote_is_found_with_the_anchor(desk: Desk, tmp_path: Path) -> None:
    anchor = verify(desk.ledger.file)["head"]
    other = full_desk(tmp_path / "other")
    desk.ledger.file.write_bytes(other.ledger.file.read_bytes())
    shutil.rmtree(desk.folder / "receipts")
    shutil.copytree(other.folder / "receipts", desk.folder / "receipts")
    assert not problems(desk)  # the letters are the same
    assert len(problems(desk, anchor=anchor)) == 1


def test_lines_that_are_exchanged_or_missing_are_found(desk: Desk) -> None:
    found = lines(desk)
    for changed in ([*found[:2], found[3], found[2], *found[4:]], found[:3] + found[4:], [*found[:5], found[4], *found[5:]]):
        desk.ledger.file.write_bytes(b"".join(line + b"\n" for line in changed))
        assert any("does not follow the line before" in problem for problem in problems(desk))
        with pytest.raises(OneshuiError, match=r"line \d+ does not follow.*nothing is appended"):
            desk.withdraw("R-000005", later(8))


def test_a_receipt_that_is_missing_or_foreign_is_found(desk: Desk) -> None:
    first, second = (receipt_file(desk.folder, id) for id in ("R-000001", "R-000002"))
    kept = first.read_bytes()
    first.unlink()
    (problem,) = problems(desk)
    assert "lists a receipt that cannot be verified" in problem
    first.write_bytes(second.read_bytes())
    assert any("is not the receipt" in problem or "cannot be verified" in problem for problem in problems(desk))
    first.write_bytes(kept)
    shutil.copy(first, desk.folder / "receipts" / "R-000009.json")
    (problem,) = problems(desk)
    assert problem.endswith(f"is a receipt that {desk.ledger.file} does not list.")


def test_a_letter_that_was_changed_is_found(desk: Desk) -> None:
    letter = desk.folder / "letters" / "R-000002.md"
    letter.write_text(letter.read_text() + " ")
    (problem,) = problems(desk)
    assert problem.startswith(f"{letter} is missing, or is not the letter of line")


def test_a_receipt_alone_is_verified_by_its_own_key(desk: Desk, tmp_path: Path) -> None:
    alone = Path(shutil.copy(receipt_file(desk.folder, "R-000001"), tmp_path / "R-000001.json"))
    found = verify(alone)
    assert (found["kind"], found["problems"], found["entries"]) == ("receipt", [], None)
    assert any("the ledger is not at hand" in sentence for sentence in found["unchecked"])
    assert verify(alone, anchor="0" * 64)["problems"]


@pytest.mark.parametrize("missing", [1, 2, 40])
def test_a_torn_last_line_is_cut_and_noted(desk: Desk, missing: int) -> None:
    whole = lines(desk)
    desk.ledger.file.write_bytes(desk.ledger.file.read_bytes()[: -1 - missing])
    (problem,) = problems(desk)
    assert f"line {len(whole)} is not complete" in problem
    desk.withdraw("R-000005", later(8))
    assert not problems(desk)
    *before, last = lines(desk)
    assert before == whole[:-1]
    assert json.loads(last)["notes"] == [LINE_WAS_CUT]


def test_a_line_that_lacks_its_end_only_is_completed_and_noted(desk: Desk) -> None:
    whole = lines(desk)
    desk.ledger.file.write_bytes(desk.ledger.file.read_bytes()[:-1])
    desk.withdraw("R-000005", later(8))
    *before, last = lines(desk)
    assert before == whole
    assert json.loads(last)["notes"] == [LINE_WAS_COMPLETED]
    assert not problems(desk)


def test_a_torn_first_line_is_written_again(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    desk.folder.mkdir()
    desk.ledger.file.write_bytes(b'{"content":')
    receive(desk)
    assert not problems(desk)
    assert json.loads(lines(desk)[0])["notes"] == [LINE_WAS_CUT]


def test_a_clock_that_goes_back_is_noted(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    receive(desk, days=3)
    receive(desk, days=1)
    receive(desk, days=2)
    notes = [json.loads(line)["notes"] for line in lines(desk)]
    assert notes == [[], [], [CLOCK_WENT_BACK], []]
    assert not problems(desk)


def test_a_failed_write_leaves_the_ledger_as_it_was(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    before = desk.ledger.file.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("oneshui_hf.desk.ledger.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        desk.withdraw("R-000005", later(8))
    assert desk.ledger.file.read_bytes() == before


def test_without_the_key_nothing_is_appended(desk: Desk) -> None:
    shutil.rmtree(desk.folder.parent / "vault")
    assert not problems(desk)  # verification needs no secret
    with pytest.raises(OneshuiError, match="The key of this request desk is not in the vault"):
        desk.withdraw("R-000005", later(8))


def test_a_secret_that_was_exchanged_is_not_used_to_sign(desk: Desk) -> None:
    vault, chain = desk.folder.parent / "vault", desk.ledger.read()
    shutil.copy(vault / chain.requests["R-000005"].secret / "artefact.key", Secrets(vault, chain.desk).folder / "artefact.key")
    with pytest.raises(OneshuiError, match="is not the one that"):
        desk.withdraw("R-000005", later(8))


BAD: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    ("unknown field", lambda content: content | {"name": NAME}, "name"),
    ("missing field", lambda content: {key: value for key, value in content.items() if key != "reason"}, "no field 'content.reason'"),
    ("long text", lambda content: content | {"reason": "x" * 501}, "at most 500"),
    ("wrong type", lambda content: content | {"reason": 1}, "valid string"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_entries_with_other_fields_are_refused(desk: Desk, change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    with pytest.raises(OneshuiError, match=message):
        desk.ledger.append(lambda chain, key: [Draft("refused", "R-000005", change({"reason": "none"}))], later(8))


@pytest.mark.parametrize(("kind", "request_id"), [("gone", "R-000005"), ("opened", None), ("batch", "R-000005"), ("refused", None)])
def test_entries_of_unknown_kinds_are_refused(desk: Desk, kind: str, request_id: str | None) -> None:
    with pytest.raises(OneshuiError):
        desk.ledger.append(lambda chain, key: [Draft(kind, request_id, {"reason": "none"})], later(8))
    assert not problems(desk)


OPERATOR = """
import sys
import time
from pathlib import Path
from oneshui_hf.desk.desk import Desk
desk = Desk(Path(sys.argv[1]) / "desk", Path(sys.argv[1]) / "vault")
for number in range(50):
    desk.receive(b"photo", None, None, sys.argv[2])
"""


def test_two_processes_append_to_one_chain(tmp_path: Path) -> None:
    operators = [subprocess.Popen([sys.executable, "-c", OPERATOR, str(tmp_path), name]) for name in ("one", "two")]
    assert [operator.wait(120) for operator in operators] == [0, 0]
    desk = new_desk(tmp_path)
    assert not problems(desk)
    entries = [json.loads(line) for line in lines(desk)][1:]
    assert [entry["request"] for entry in entries] == [f"R-{number:06d}" for number in range(1, 101)]
    channels = [entry["content"]["channel"] for entry in entries]
    assert (channels.count("one"), channels.count("two")) == (50, 50)


def contents(folder: Path) -> bytes:
    return b"\0".join(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_no_personal_data_is_readable_in_the_desk(desk: Desk) -> None:
    found = contents(desk.folder)
    for canary in (NAME.encode(), b"Canary", b"canary", PHOTO[:16], hashlib.sha256(PHOTO).hexdigest().encode()):
        assert canary not in found
    for plain in (NAME.encode(), PHOTO):
        assert hashlib.sha256(plain).hexdigest().encode() not in found
    kept = desk.kept(desk.find("R-000002"))
    assert (kept.photo(), kept.identity()) == (PHOTO, NAME)


def test_folders_and_files_are_private(desk: Desk, tmp_path: Path) -> None:
    fresh = new_desk(tmp_path / "fresh")
    (tmp_path / "fresh" / "desk").mkdir(parents=True, mode=0o755)
    receive(fresh)
    assert stat.S_IMODE(fresh.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(fresh.ledger.file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(file.stat().st_mode) for file in (fresh.folder / "kept").iterdir()} == {0o600}


def test_a_folder_with_other_contents_is_no_desk(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    desk.folder.mkdir()
    (desk.folder / "api.py").write_text("")
    with pytest.raises(UsageError, match="is no request desk, but contains 'api.py'; name another --desk"):
        receive(desk)
    assert [file.name for file in desk.folder.iterdir()] == ["api.py"]
    with pytest.raises(UsageError, match="There is no ledger at"):
        desk.requests()


def test_a_day_in_the_future_is_refused(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    with pytest.raises(UsageError, match="--received 2026-11-04 is in the future: today is 2026-11-03"):
        desk.receive(PHOTO, None, date(2026, 11, 4), None, later(0))
    assert not desk.folder.exists()


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    2**63,
    1e308,
    "",
    "x",
    "R-000001",
    "0" * 64,
    [],
    {},
    [[]],
    {"a": {}},
    "2026-13-01",
    "2026-02-30",
    "\u202e" * 9,
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container of a JSON value with each of its keys."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in inner] + [place for _, item in inner for place in places(item)]


def test_crafted_ledgers_with_valid_signatures_give_sentences(desk: Desk) -> None:
    """Whoever has a key can sign anything; verification returns problems, and neither fails nor accepts other fields."""
    rng, values = random.Random(7), [json.loads(line) for line in lines(desk)]
    key = SigningKey(desk.folder.parent / "vault", desk.ledger.read().desk)
    for _ in range(300):
        changed = copy.deepcopy(values)
        container, name = rng.choice(places(rng.choice(changed)))
        if rng.random() < 0.2:
            del container[name]
        else:
            container[name] = rng.choice(HOSTILE)
        previous, signed = "0" * 64, []
        for value in changed:
            line = canonical_json(key.sign(value | {"previous": previous}))
            previous = hashlib.sha256(line).hexdigest()
            signed.append(line + b"\n")
        desk.ledger.file.write_bytes(b"".join(signed))
        for problem in problems(desk):
            assert problem.endswith(".")


def test_files_that_are_no_ledger_give_sentences(tmp_path: Path) -> None:
    for number, data in enumerate(
        (b"", b"\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"{}\n", b"null\n", b'{"kind":[]}\n', b"x" * 300_000 + b"\n")
    ):
        file = tmp_path / f"{number}.jsonl"
        file.write_bytes(data)
        assert verify(file)["problems"]
        receipt = tmp_path / f"{number}.json"
        receipt.write_bytes(data)
        assert verify(receipt)["problems"]


@pytest.mark.slow
def test_killed_operators_leave_a_chain_that_the_next_one_continues(tmp_path: Path) -> None:
    desk, rng = new_desk(tmp_path), random.Random(3)
    receive(desk)
    for number in range(12):
        before = len(lines(desk))
        operator = subprocess.Popen([sys.executable, "-c", OPERATOR, str(tmp_path), f"operator {number}"])
        while len(lines(desk)) == before and operator.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() / 5)
        operator.kill()
        operator.wait()
        desk.receive(PHOTO, NAME, None, None)
        assert not problems(desk)
    requests = desk.requests()
    assert len(requests) > 24
    assert {file.name.partition(".")[0] for file in (desk.folder / "kept").glob("[!.]*")} == {one.secret for one in requests.values()}
    assert all(desk.kept(request).photo() for request in requests.values())
