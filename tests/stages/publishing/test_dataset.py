"""Publication of a data set on a Hub on the loopback interface: what is sent, what never leaves this machine, and reading it again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from support.faces import portrait
from support.hub_server import Hub

MakeFolder = Callable[..., Path]
CANARY = "quimby7319"  # occurs in every name, path and tag that must not leave this machine

# HF_ENDPOINT is read when the client is imported, so the client runs in a separate process: one call and one result per line.
CLIENT = """
import json, sys
import oneshui_hf
from oneshui_hf.api import push_data
from oneshui_hf.data.load import load_faces
from oneshui_hf.data.pixels import load_pixels
from oneshui_hf.errors import OneshuiError

def push(**options):
    return push_data(**options)

def load(**options):
    faces, pixels = load_pixels(load_faces(**options), 16)
    people = [faces.people[i] for i in faces.identities]
    labels = {key: [person, label] for key, person, label in zip(faces.keys, people, faces.labels.tolist())}
    sums = {key: int(pixels[faces.arrow_rows[[i]]].astype(int).sum()) for i, key in enumerate(faces.keys)}
    return {"rows": labels, "sums": sums, "kind": faces.task.kind, "labels": faces.task.label_names, "notes": faces.exclusions.messages()}

def push_killed(**options):  # at the moment when the data set is sent
    import os, signal
    from oneshui_hf.hub import Repository
    Repository.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    push_data(**options)

for line in sys.stdin:
    what, options = json.loads(line)
    try:
        answer = {"result": {"push": push, "push_killed": push_killed, "load": load}[what](**options)}
    except OneshuiError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


Client = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(hub: Hub, home: Path) -> Iterator[Client]:
    with start_client(hub, home) as call:
        yield call


@contextlib.contextmanager
def start_client(hub: Hub, home: Path) -> Iterator[Client]:
    private = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_TOKEN": "hf_owner"}
    private["ONESHUI_CACHE"] = str(home / "oneshui")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT], env=environment | private, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout

    def request(what: str, **options: Any) -> dict[str, Any]:
        process.stdin.write(json.dumps([what, options], default=str) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield request
    process.stdin.close()
    process.wait()


@pytest.fixture
def named_folder(photo_folder: MakeFolder) -> Path:
    """A folder whose identities, photos and path contain a name, and in which one photo has metadata."""
    folder = photo_folder(people=4, photos=3, name=CANARY)
    for person in range(4):
        (folder / f"p{person:02d}").rename(folder / f"{CANARY}-{person}")
    metadata = folder / "metadata.csv"
    metadata.write_text("".join(line.replace("p0", f"{CANARY}-") for line in metadata.read_text().splitlines(keepends=True)))
    exif = Image.Exif()
    exif[0x010E] = CANARY
    portrait(0, 0, (48, 40)).save(folder / f"{CANARY}-0/0.png", exif=exif)
    return folder


def shard(hub: Hub, name: str) -> Any:
    files = hub.files(f"datasets/{name}")
    (data,) = (content for path, content in files.items() if path.endswith(".parquet"))
    return pq.read_table(io.BytesIO(data))


def test_data_set_is_published_without_names(hub: Hub, client: Client, named_folder: Path) -> None:
    before = client("load", dataset=str(named_folder))["result"]
    url = client("push", repo_id="owner/numbers", dataset=str(named_folder))
    assert "owner/numbers" in url["result"]
    assert hub.repos["datasets/owner/numbers"].private
    assert CANARY.encode() not in hub.sent()
    table = shard(hub, "owner/numbers")
    assert CANARY.encode() not in b"".join(row["bytes"] for row in table.column("image").to_pylist())
    after = client("load", dataset="owner/numbers")["result"]
    assert sorted(after["sums"].values()) == sorted(before["sums"].values())  # the pixels are the same
    by_sum = {after["sums"][key]: row for key, row in after["rows"].items()}
    numbers: dict[str, set[str]] = {}
    for key, (person, labels) in before["rows"].items():
        number, same = by_sum[before["sums"][key]]
        numbers.setdefault(person, set()).add(number)
        assert same == labels
    assert all(len(found) == 1 for found in numbers.values())  # one number per identity, for all photos
    assert set().union(*numbers.values()) == set("0123")
    assert after["labels"] == before["labels"]


def test_names_are_published_on_request(hub: Hub, client: Client, named_folder: Path) -> None:
    client("push", repo_id="owner/names", dataset=str(named_folder), keep_names=True)
    before, after = (client("load", dataset=place)["result"] for place in (str(named_folder), "owner/names"))
    assert after["rows"] == before["rows"]
    assert after["sums"] == before["sums"]
    assert any("Photos are column 'image', people are column 'identity'." in note for note in after["notes"])


def test_data_card_contains_counts_and_no_names(hub: Hub, client: Client, named_folder: Path) -> None:
    client("push", repo_id="owner/card", dataset=str(named_folder))
    card = hub.files("datasets/owner/card")["README.md"].decode()
    header = yaml.safe_load(card.split("---")[1])
    assert header["task_categories"] == ["image-classification"]
    assert "12 photos of 4 people, 3 to 3 each (median 3)" in card
    assert "oneshui train --dataset owner/card" in card
    assert "| Smiling |" in card
    assert CANARY not in card


def test_classes_are_published_as_classes(hub: Hub, client: Client, photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=3, photos=2, name="ages")
    rows = [line.split(",")[:2] for line in (folder / "metadata.csv").read_text().splitlines()]
    ages = ["age", *"cab" * 2]
    (folder / "metadata.csv").write_text("".join(",".join([*row, age]) + "\n" for row, age in zip(rows, ages, strict=True)))
    client("push", repo_id="owner/ages", dataset=str(folder), keep_names=True)
    before, after = (client("load", dataset=place)["result"] for place in (str(folder), "owner/ages"))
    assert (after["kind"], after["labels"], after["rows"]) == ("single_label", ["a", "b", "c"], before["rows"])


def test_unreadable_photo_is_not_published(hub: Hub, client: Client, photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=3, photos=2, name="broken")
    (folder / "p01/0.png").write_bytes(b"no photo")
    client("push", repo_id="owner/broken", dataset=str(folder))
    assert shard(hub, "owner/broken").num_rows == 5
    assert "1 photos that could not be read" in hub.files("datasets/owner/broken")["README.md"].decode()


def test_second_push_replaces_the_first_and_keeps_other_files(hub: Hub, client: Client, photo_folder: MakeFolder) -> None:
    client("push", repo_id="owner/twice", dataset=str(photo_folder(people=3, photos=2, name="one")))
    hub.add("datasets/owner/twice", {"data/train-00000-of-00002.parquet": b"old", "LICENSE": b"mine"})
    client("push", repo_id="owner/twice", dataset=str(photo_folder(people=4, photos=2, name="two")))
    assert shard(hub, "owner/twice").num_rows == 8
    assert hub.files("datasets/owner/twice")["LICENSE"] == b"mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repo_id": "other/mine"}, "The Hub denies you this access to other/mine"),
        ({"repo_id": "a/b/c"}, "'a/b/c' is not the name of a repository"),
        ({"repo_id": "owner/mine", "dataset": "owner/absent"}, "owner/absent"),
        ({"repo_id": "owner/mine", "identity_column": "who"}, "no column 'who'"),
    ],
)
def test_each_error_is_one_sentence(client: Client, photo_folder: MakeFolder, options: dict[str, str], words: str) -> None:
    answer = client("push", **({"dataset": str(photo_folder())} | options))
    assert words in answer["error"]
    assert "\n" not in answer["error"]


def test_private_push_to_a_public_repository_sends_nothing(hub: Hub, client: Client, photo_folder: MakeFolder) -> None:
    hub.add("datasets/owner/open", {}, private=False)
    answer = client("push", repo_id="owner/open", dataset=str(photo_folder()))
    assert "owner/open is public, so nothing was sent" in answer["error"]
    assert not any(path.endswith(".parquet") for path in hub.files("datasets/owner/open"))


def test_labels_that_name_people_are_not_published(hub: Hub, client: Client, named_folder: Path) -> None:
    rows = [line.split(",") for line in (named_folder / "metadata.csv").read_text().splitlines()]
    lines = ["file_name,identity,label", *(f"{row[0]},{row[1]},{row[1].upper()}" for row in rows[1:])]
    (named_folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    answer = client("push", repo_id="owner/people", dataset=str(named_folder))
    assert "are names of its people" in answer["error"]
    assert "datasets/owner/people" not in hub.repos


def test_links_to_photos_outside_of_the_folder_are_not_followed(hub: Hub, client: Client, photo_folder: MakeFolder, tmp_path: Path) -> None:
    folder = photo_folder(people=3, photos=2, name="linked")
    photo = folder / "p01/0.png"
    photo.rename(tmp_path / "private.png")
    photo.symlink_to(tmp_path / "private.png")
    answer = client("push", repo_id="owner/linked", dataset=str(folder))
    assert (
        answer["error"] == f"Photo {photo} is a link to a place outside of {folder}, so nothing was sent; copy the photo into the folder."
    )
    photo.unlink()
    (folder / "p01").rename(tmp_path / "people")
    (folder / "p01").symlink_to(tmp_path / "people")
    (tmp_path / "people" / "0.png").hardlink_to(tmp_path / "private.png")
    assert "is a link to a place outside of" in client("push", repo_id="owner/linked", dataset=str(folder))["error"]
    assert "datasets/owner/linked" not in hub.repos


def test_links_inside_of_the_folder_and_to_it_are_followed(hub: Hub, client: Client, photo_folder: MakeFolder, tmp_path: Path) -> None:
    folder = photo_folder(people=3, photos=2, name="own")
    (folder / "p01").rename(folder / "other")
    (folder / "p01").symlink_to(folder / "other")
    (tmp_path / "alias").symlink_to(folder)
    assert "result" in client("push", repo_id="owner/own", dataset=str(tmp_path / "alias"))
    assert shard(hub, "owner/own").num_rows == 6


def test_photos_of_a_killed_push_are_removed_by_the_next_one(hub: Hub, client: Client, home: Path, photo_folder: MakeFolder) -> None:
    folder, scratch = photo_folder(people=3, photos=2, name="killed"), home / "oneshui" / "push"
    before = sorted(Path(tempfile.gettempdir()).glob("oneshui-push-*"))
    with start_client(hub, home) as doomed, pytest.raises(json.JSONDecodeError):  # it does not answer
        doomed("push_killed", repo_id="owner/killed", dataset=str(folder))
    assert [path.name for path in scratch.rglob("*.parquet")]
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in scratch.iterdir() if path.is_dir())
    assert sorted(Path(tempfile.gettempdir()).glob("oneshui-push-*")) == before  # nothing is written there
    assert "result" in client("push", repo_id="owner/killed", dataset=str(folder))
    assert list(scratch.iterdir()) == []
