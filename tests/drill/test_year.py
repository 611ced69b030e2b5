"""A year at the request desk: 60 requests in 12 batches, two operators at once, and kills.

One request is refused, one is withdrawn, two are overdue, and an older model is put back. At the end the ledger verifies, changes of
ledger, receipts and model are found, and nothing personal is in ledger and receipts.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import oneshui_hf
from drill.injection import Action, Fault, compile_shim
from drill.processes import Job, Result, Worker
from drill.year import name_of
from oneshui_hf.data.split import load_split
from oneshui_hf.desk.ledger import read_chain
from support.faces import LABELS, write_photos

SEED = 2026
PEOPLE, PHOTOS, BATCHES, PER_BATCH = 240, 3, 12, 5
REQUESTS = BATCHES * PER_BATCH
MONTH = 28  # days
MUTATIONS, FULL = 600, 10  # of the changes of the ledger, one in so many is examined by the whole of `verify`
FALSE_ALARMS = 7  # of 43 people: by chance, 1 in 20 is below the range, and more than 7 are with a probability of 0.2 %
KILLS = 12  # at least
WITHDRAWN, REFUSED, LATE = 7, 13, (15, 16)  # places of the requests, from 0 on
RELAPSE, OLDER = 9, 5  # the batch after which an older model is examined, and the batch of that one

SETUP = """
import oneshui_hf
run = oneshui_hf.train(dataset="photos", model="tiny", image_size=16, head="closed-form", augment="none", forget=1, output_dir="run-0")
oneshui_hf.prepare(run, method="exact-head")
"""
SCRIPT = "from drill.year import work\nwork({steps!r}, {day})"


class Operators:
    """Two operators, each a process that may be killed at a random file operation."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._draws = worker, random.Random(SEED)
        self.root, self.kills = worker.root, 0

    def work(self, day: int, *steps: Sequence[Sequence[Any]], kill: bool = True) -> None:
        """Let each operator do steps at once with the other; one may be killed, and all of them repeat what was not finished."""
        scripts = [SCRIPT.format(steps=list(own), day=day) for own in steps]
        faults = [Fault(Action.KILL, self._draws.randrange(2, 60)) if kill and self._draws.random() < 0.6 else Fault() for _ in scripts]
        jobs = [Job(script=script, fault=fault, delay=self._draws.uniform(0, 0.3)) for script, fault in zip(scripts, faults, strict=True)]
        results = self._worker.run(*jobs)
        self.kills += sum(result.killed for result in results)
        for result, script in zip(results, scripts, strict=True):
            for _ in range(3):  # alone: the other one may have held a lock
                if result.code == 0:
                    break
                assert result.killed or "oneshui_hf.errors." in result.err, result.err
                (result,) = self._worker.run(Job(script=script))
            assert result.code == 0, result.err


def require(result: Result) -> None:
    assert result.code == 0, result.err


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("year")
    found = Worker(folder, folder / "home", compile_shim(folder))
    photos = found.root / "photos"
    photos.mkdir()
    write_photos(photos, PEOPLE, PHOTOS, name_of, (16, 16))
    require(*found.run(Job(script=SETUP, limit=240)))
    yield found
    found.close()


@pytest.mark.slow
def test_a_year_at_the_desk(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(worker.root)
    operators = Operators(worker)
    names = sorted(load_split(worker.root / "run-0/split.json").people["train"])
    people = [int(name.split()[-1]) for name in names][:REQUESTS]
    random.Random(SEED).shuffle(people)
    assert len(people) == REQUESTS
    run_one_year(operators, people)
    assert operators.kills >= KILLS
    check_the_end(worker.root)


def run_one_year(operators: Operators, people: list[int]) -> None:
    """Handle all requests: those of a month are received, identified, applied, served and answered in it."""
    for batch in range(1, BATCHES + 1):
        day, run, new = MONTH * (batch - 1), f"run-{batch - 1}", f"run-{batch}"
        month = people[PER_BATCH * (batch - 1) : PER_BATCH * batch]
        late = [people[place] for place in LATE]
        closed = [people[WITHDRAWN], people[REFUSED]]
        now = [person for person in month if person not in (*late, *closed)] + (late if batch == LATE[0] // PER_BATCH + 2 else [])
        operators.work(day, [("receive", *month[:3])], [("receive", *month[3:])])
        if people[WITHDRAWN] in month:
            operators.work(day + 1, [("withdraw", people[WITHDRAWN])])
        if people[REFUSED] in month:
            operators.work(day + 1, [("refuse", people[REFUSED])])
        if batch == LATE[0] // PER_BATCH + 2:
            operators.work(day + 10, [("overdue", "overdue.json")], kill=False)
        operators.work(day + 11, [("identify", run, *now[:2])], [("identify", run, *now[2:])])
        operators.work(day + 12, [("apply", run, new)], [("apply", run, new)])
        operators.work(day + 13, [("serve", new)], [("serve", new)])
        operators.work(day + 14, [("answer", *now[:2])], [("answer", *now[2:])])
        if batch == RELAPSE:
            operators.work(day + 15, [("recheck", new, "now.json")], [("recheck", f"run-{OLDER}", "old.json")], kill=False)
    operators.work(MONTH * BATCHES, [("erase", *people[:3])], [("erase", *people[3:5])])


def check_the_end(root: Path) -> None:
    """Check the desk after the year."""
    desk, last = root / "requests", root / f"run-{BATCHES}"
    ledger = desk / "ledger.jsonl"
    found = oneshui_hf.verify(ledger, run=last)
    assert found["problems"] == []
    assert found["requests"] == REQUESTS
    states = Counter(row["state"] for row in oneshui_hf.list_requests(desk=str(desk)))
    assert states == {"answered": REQUESTS - 1, "withdrawn": 1}
    entries = [json.loads(line) for line in ledger.read_bytes().splitlines()]
    kinds = Counter(entry["kind"] for entry in entries)
    assert (kinds["applied"], kinds["refused"], kinds["withdrawn"], kinds["erased"]) == (REQUESTS - 2, 1, 1, 5)
    assert len({entry["content"]["batch"] for entry in entries if entry["kind"] == "applied"}) == BATCHES
    assert len(json.loads((root / "overdue.json").read_text())) == len(LATE)
    check_the_relapse(root, entries)
    assert oneshui_hf.verify(ledger, anchor=found["head"])["problems"] == []
    check_truncation(ledger, found["head"])
    check_mutations(ledger, last)
    public = b"".join(file.read_bytes() for file in (ledger, *(desk / "receipts").iterdir(), *(desk / "letters").iterdir()))
    for canary in (b"Zora", b"Canary", b"canary", b".png", b"\x89PNG", str(root).encode(), *(label.encode() for label in LABELS)):
        assert canary not in public, canary
    assert len(list((desk / "receipts").iterdir())) == REQUESTS - 2


def check_the_relapse(root: Path, entries: list[dict[str, Any]]) -> None:
    """All people of the batches after the older model are remembered by it; of the others, those that chance allows."""
    batches = {entry["request"]: entry["content"]["batch"] for entry in entries if entry["kind"] == "applied"}
    now, old = (json.loads((root / name).read_text()) for name in ("now.json", "old.json"))
    assert {id for id, verdict in old.items() if verdict == "no longer"} >= {id for id in old if batches[id] > OLDER}
    assert len([id for id, verdict in now.items() if verdict == "no longer"]) <= FALSE_ALARMS
    assert len([id for id, verdict in old.items() if verdict == "no longer" and batches[id] <= OLDER]) <= FALSE_ALARMS


def check_truncation(ledger: Path, head: str) -> None:
    """A ledger that was cut at the end of a line is found with the anchor."""
    data = ledger.read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    for end in random.Random(SEED).sample(ends[:-1], 10):
        ledger.write_bytes(data[:end])
        assert any("anchor" in problem for problem in oneshui_hf.verify(ledger, anchor=head)["problems"])
    ledger.write_bytes(data)


def check_mutations(ledger: Path, run: Path) -> None:
    """Every change of a random byte is found: in the ledger, in a receipt alone, and in the model with the receipt of its batch alone."""
    draws = random.Random(SEED)
    alone = ledger.parent.parent / "alone"
    shutil.copytree(ledger.parent / "receipts", alone)
    receipts = sorted(alone.iterdir())
    (made,) = {file for file in receipts if file.stem == newest(ledger)}
    models = [run / "model.safetensors", run / "config.json", run / "preprocessor_config.json"]
    assert oneshui_hf.verify(made, run=run)["problems"] == []
    for number in range(MUTATIONS):
        file = draws.choice([[ledger], receipts, models][number % 3])
        data = file.read_bytes()
        place = draws.randrange(len(data))
        changed = bytes([draws.choice([value for value in range(256) if value != data[place]])])
        file.write_bytes(data[:place] + changed + data[place + 1 :])
        if file != ledger:
            found = oneshui_hf.verify(made, run=run)["problems"] if file in models else oneshui_hf.verify(file)["problems"]
        elif number % FULL == 0:
            found = oneshui_hf.verify(ledger)["problems"]
        else:
            chain = read_chain(ledger)
            found = [*chain.problems, *filter(None, [chain.torn])]
        assert found, (file, place, changed)
        file.write_bytes(data)
    assert oneshui_hf.verify(ledger, run=run)["problems"] == []


def newest(ledger: Path) -> str:
    """Return a request of the last batch."""
    entries = [json.loads(line) for line in ledger.read_bytes().splitlines()]
    return str([entry["request"] for entry in entries if entry["kind"] == "applied"][-1])
