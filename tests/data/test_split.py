"""Splits by identity: properties for any data set and seed, the shares at CelebA's size, and errors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshui_hf.data.load import load_photo_keys
from oneshui_hf.data.schema import Faces, Task
from oneshui_hf.data.split import FORMAT, Split, load_split, make_split, published_checksum, split_summary
from oneshui_hf.errors import OneshuiError, UsageError

PARTS = ("retain", "forget", "val", "test", "support", "reserved")


def faces_of(counts: list[int], order: np.ndarray | None = None) -> Faces:
    """Return a data set of people p00000, p00001, ... with these numbers of photos; rows in the given order."""
    owners = np.repeat(np.arange(len(counts)), counts)
    keys = np.array([f"p{p:05d}/{i:06d}.jpg" for i, p in enumerate(owners)])
    order = np.arange(len(owners)) if order is None else order
    people = [f"p{p:05d}" for p in range(len(counts))]
    labels = torch.zeros(len(owners), 1)
    task = Task("multi_label", ("a",))
    return Faces("made", task, keys[order].tolist(), owners[order].astype(np.int64), people, labels, None, np.arange(len(order)), Path())  # type: ignore[arg-type]


def owners_of(faces: Faces, rows: np.ndarray) -> set[str]:
    return {faces.people[i] for i in faces.identities[rows]}


photo_counts = st.lists(st.integers(1, 6), min_size=20, max_size=60)
seeds = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(photo_counts, seeds, st.integers(0, 3))
def test_sets_are_disjoint_complete_and_by_identity(counts: list[int], seed: int, forget: int) -> None:
    faces = faces_of([*counts, *[3] * 20])
    split = make_split(faces.photos_by_identity(), seed, forget)
    sets = split.sets(faces)
    parts = [sets[name] for name in PARTS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(faces)))  # each photo in exactly one
    people = [owners_of(faces, sets[name]) for name in ("retain", "forget", "val", "test")]
    assert sum(map(len, people)) == len(set().union(*people)) == len(faces.people)
    assert sorted(sets["train"].tolist()) == sorted([*sets["retain"].tolist(), *sets["forget"].tolist()])


@settings(max_examples=40, deadline=None)
@given(photo_counts, seeds, st.integers(1, 3))
def test_each_forget_identity_has_one_support_photo_outside_all_sets(counts: list[int], seed: int, forget: int) -> None:
    faces = faces_of([*counts, *[3] * 20])
    split = make_split(faces.photos_by_identity(), seed, forget)
    sets = split.sets(faces)
    assert sorted(split.support) == split.forget
    assert len(split.forget) == forget == len(sets["support"]) == len(set(split.support.values()))
    assert owners_of(faces, sets["support"]) == owners_of(faces, sets["forget"]) == set(split.forget)
    for person, key in {**split.support, **split.reserved}.items():
        assert key.startswith(person + "/")
        assert person in split.people["train"]
    assert not set(split.reserved.values()) & set(split.support.values())
    held = np.concatenate([sets["support"], sets["reserved"]])
    assert not set(held.tolist()) & set(np.concatenate([sets[n] for n in ("train", "val", "test")]).tolist())


@settings(max_examples=40, deadline=None)
@given(photo_counts, seeds)
def test_forget_and_reserved_identities_have_enough_photos(counts: list[int], seed: int) -> None:
    faces = faces_of([*counts, *[3] * 20])
    split = make_split(faces.photos_by_identity(), seed, 3)
    photos = dict(zip(faces.people, [*counts, *[3] * 20], strict=True))
    assert min(photos[person] for person in split.forget) >= 2
    assert all(photos[person] >= 3 + (person in split.forget) for person in split.reserved)


@settings(max_examples=20, deadline=None)
@given(photo_counts, seeds, st.randoms())
def test_split_does_not_depend_on_the_order_of_rows(counts: list[int], seed: int, random: object) -> None:
    counts = [*counts, *[3] * 20]
    order = np.arange(sum(counts))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert (
        make_split(faces_of(counts).photos_by_identity(), seed, 2).dumps()
        == make_split(faces_of(counts, order).photos_by_identity(), seed, 2).dumps()
    )


def test_different_seeds_give_different_splits() -> None:
    faces = faces_of([4] * 60)
    splits = [make_split(faces.photos_by_identity(), seed, 3) for seed in range(6)]
    assert len({tuple(s.people["test"]) for s in splits}) == 6
    assert len({tuple(s.forget) for s in splits}) == 6


def test_split_is_stable_across_versions() -> None:
    split = make_split(faces_of([3, 1, 4, 1, 5, 9, 2, 6, 5, 3]).photos_by_identity(), 7, 1)
    assert split.people == {
        "train": ["p00000", "p00001", "p00003", "p00004", "p00006", "p00007", "p00008"],
        "val": ["p00002", "p00009"],
        "test": ["p00005"],
    }
    assert split.forget == ["p00004"]
    assert split.support == {"p00004": "p00004/000012.jpg"}


@settings(max_examples=10, deadline=None)
@given(photo_counts, seeds)
def test_split_round_trip(tmp_path_factory: pytest.TempPathFactory, counts: list[int], seed: int) -> None:
    file = tmp_path_factory.mktemp("split") / "split.json"
    split = make_split(faces_of([*counts, *[3] * 20]).photos_by_identity(), seed, 2)
    split.save(file)
    assert load_split(file) == split
    assert load_split(file).dumps() == file.read_bytes()


def test_shares_at_celeba_size_are_sixty_twenty_twenty() -> None:
    draws = np.random.default_rng(0)
    counts = np.clip(draws.normal(19.9, 9, 10_000).round(), 1, 35).astype(int).tolist()  # CelebA: 1 to 35, 19.9 on average
    faces = faces_of(counts)
    split = make_split(faces.photos_by_identity(), 0, 20)
    sets = split.sets(faces)
    taken = len(sets["train"]) + len(sets["support"]) + len(sets["reserved"])
    shares = [100 * n / len(faces) for n in (taken, len(sets["val"]), len(sets["test"]))]
    assert shares == pytest.approx([60, 20, 20], abs=2)
    assert split_summary(split, sets)["forget_identities"] == 20


@pytest.mark.parametrize(("meta_identities", "forget"), [("all", 4), ("disjoint", 0)])
def test_one_in_four_simulated_identities_has_a_reserved_photo(meta_identities: str, forget: int) -> None:
    faces = faces_of([4] * 100)
    split = make_split(faces.photos_by_identity(), 0, 4, meta_identities=meta_identities)
    assert len(split.reserved) == (len(split.people["train"]) - 4 + forget) // 4


def test_forget_identities_are_simulated_like_others_or_never() -> None:
    faces, simulated, total = faces_of([4] * 100), 0, 0
    for seed in range(30):
        all_, disjoint = (make_split(faces.photos_by_identity(), seed, 20, meta_identities=meta) for meta in ("all", "disjoint"))
        assert all_.forget == disjoint.forget
        assert not set(disjoint.reserved) & set(disjoint.forget)
        simulated += len(set(all_.reserved) & set(all_.forget))
        total += len(all_.forget)
    assert simulated / total == pytest.approx(1 / 4, abs=0.06)


def test_number_of_reserved_photos_is_the_requested_one() -> None:
    faces = faces_of([3] * 50)
    assert len(make_split(faces.photos_by_identity(), 0, 4, reserve_supports=7).reserved) == 7
    assert make_split(faces.photos_by_identity(), 0, 4, reserve_supports=0).reserved == {}


def test_forget_set_may_be_empty() -> None:
    faces = faces_of([3] * 20)
    split = make_split(faces.photos_by_identity(), 0, 0)
    assert split.forget == []
    assert len(split.sets(faces)["forget"]) == 0


def test_too_many_forget_identities_raise() -> None:
    faces = faces_of([1] * 20 + [2] * 20)
    eligible = sum(p >= "p00020" for p in make_split(faces.photos_by_identity(), 0, 0).people["train"])
    assert len(make_split(faces.photos_by_identity(), 0, eligible).forget) == eligible
    with pytest.raises(UsageError, match=f"--forget {eligible + 1} is more than the {eligible} training people with two photos"):
        make_split(faces.photos_by_identity(), 0, eligible + 1)


def test_too_many_reserved_photos_raise() -> None:
    faces = faces_of([2] * 20 + [3] * 20)
    eligible = sum(p >= "p00020" for p in make_split(faces.photos_by_identity(), 0, 0).people["train"])
    with pytest.raises(
        UsageError, match=f"--reserve-supports {eligible + 1} is more than the {eligible} training people with enough photos"
    ):
        make_split(faces.photos_by_identity(), 0, 0, reserve_supports=eligible + 1)


@pytest.mark.parametrize("people", [0, 1, 2])
def test_too_few_people_raise(people: int) -> None:
    with pytest.raises(UsageError, match=f"{people} people are too few to split by identity: no person remains for"):
        make_split(faces_of([3] * people).photos_by_identity(), 0, 0)


def test_split_of_other_people_raises() -> None:
    split = make_split(faces_of([3] * 30).photos_by_identity(), 0, 1)
    with pytest.raises(OneshuiError, match=r"The split does not fit this data: [1-9]\d* of its people and \d+ of its photos are not in it"):
        split.sets(faces_of([3] * 10))


def test_split_of_other_photos_raises() -> None:
    split = make_split(faces_of([3] * 30).photos_by_identity(), 0, 30 // 2)
    with pytest.raises(OneshuiError, match=r"The split does not fit this data: 0 of its people and [1-9]\d* of its photos are not in it"):
        split.sets(faces_of([4] * 30))


@pytest.mark.parametrize("value", [[], {}, {"seed": 0}, "split"])
def test_file_that_is_not_a_split_raises(tmp_path: Path, value: object) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(value))
    with pytest.raises(OneshuiError, match=r"split\.json is not a split file; `oneshui data split` writes one"):
        load_split(file)


@pytest.mark.parametrize(
    "change",
    [
        {"people": {"train": 5, "val": [], "test": []}},
        {"people": {"train": [1], "val": [], "test": []}},
        {"forget": "p00000"},
        {"support": ["a.jpg"]},
        {"reserved": {"p00000": 3}},
        {"seed": "0"},
    ],
)
def test_split_with_wrong_types_raises(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(json.loads(hand_written().dumps()) | change))
    with pytest.raises(OneshuiError, match=r"split\.json is damaged: people must be lists of names"):
        load_split(file)


def test_missing_or_invalid_json_raises(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_bytes(b"\x80\x81")
    with pytest.raises(OneshuiError, match=r"split\.json is not JSON"):
        load_split(tmp_path / "split.json")
    with pytest.raises(UsageError, match=r"Split file .*absent\.json does not exist; `oneshui data split` writes one"):
        load_split(tmp_path / "absent.json")


@pytest.mark.parametrize(("version", "remedy"), [(FORMAT + 1, "upgrade oneshui-hf"), (FORMAT - 1, "draw it again")])
def test_split_of_another_format_raises(tmp_path: Path, version: int, remedy: str) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(json.loads(make_split(faces_of([3] * 9).photos_by_identity(), 0, 1).dumps()) | {"format": version}))
    with pytest.raises(OneshuiError, match=f"has format {version}, this version reads {FORMAT}: {remedy}"):
        load_split(file)


def hand_written(**changes: object) -> Split:
    people = {"train": ["p00000", "p00001"], "val": ["p00002"], "test": ["p00003"]}
    parts = {"people": people, "forget": ["p00000"], "support": {"p00000": "p00000/000000.jpg"}, "reserved": {}, "meta_identities": "all"}
    return Split(seed=0, **{**parts, **changes})  # type: ignore[arg-type]


def test_hand_written_split_is_accepted() -> None:
    sets = hand_written().sets(faces_of([3] * 4))
    assert {name: len(rows) for name, rows in sets.items()} == {
        "train": 5, "retain": 3, "forget": 2, "val": 3, "test": 3, "support": 1, "reserved": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"people": {"train": ["p00000", "p00001"], "val": ["p00001", "p00002"], "test": ["p00003"]}},  # one person in two sets
        {"forget": ["p00002"], "support": {"p00002": "p00002/000006.jpg"}},  # a forget identity that is not in train
        {"support": {}},  # no support photo
        {"support": {"p00000": "p00001/000003.jpg"}},  # the support photo of another person
        {"reserved": {"p00002": "p00002/000006.jpg"}},  # not a training identity
        {"reserved": {"p00000": "p00000/000001.jpg"}, "meta_identities": "disjoint"},  # a forget identity in a disjoint split
        {"reserved": {"p00000": "p00000/000000.jpg"}},  # the support photo is reserved
        {"meta_identities": "some"},
    ],
    ids=["two sets", "not in train", "no support", "other's photo", "reserved in val", "disjoint", "same photo", "unknown value"],
)
def test_inconsistent_hand_written_split_raises(changes: dict[str, object]) -> None:
    with pytest.raises(OneshuiError):
        hand_written(**changes).sets(faces_of([3] * 4))


def drop_photos(faces: Faces, keys: set[str]) -> Faces:
    return faces.drop_rows(np.array([i for i, key in enumerate(faces.keys) if key in keys]))


def test_split_is_restricted_to_incomplete_data() -> None:
    faces = faces_of([1] * 40 + [4] * 60)
    split = make_split(faces.photos_by_identity(), 0, 5)
    alone = next(person for person in split.people["test"] if person < "p00040")
    reserved = next(person for person in split.reserved if person not in split.forget)
    unsupported = split.forget[0]
    lost = {faces.photos_by_identity()[alone][0], split.reserved[reserved], split.support[unsupported]}
    restricted, notes = split.restricted_to(drop_photos(faces, lost))
    assert alone not in restricted.people["test"]
    assert reserved not in restricted.reserved
    assert reserved in restricted.people["train"]
    # Runs on the complete data forget this person, so the person must not be in the retain set here.
    assert unsupported not in restricted.forget
    assert unsupported not in restricted.people["train"]
    assert len(restricted.forget) == 4
    assert notes[0] == "1 of the split's 100 people have no photo in this data."
    assert notes[1] == "1 of 5 forget identities lack the support photo and are excluded."
    assert "reserved photos are not in this data" in notes[2]
    restricted.sets(drop_photos(faces, lost))  # does not raise


def test_complete_data_does_not_change_the_split() -> None:
    faces = faces_of([3] * 40)
    split = make_split(faces.photos_by_identity(), 0, 5)
    assert split.restricted_to(faces) == (split, ())


def test_split_raises_for_data_that_lacks_most_people() -> None:
    faces = faces_of([3] * 100)
    split = make_split(faces.photos_by_identity(), 0, 5)
    with pytest.raises(OneshuiError, match="it lacks [67][0-9] of its 100 people"):
        split.restricted_to(faces_of([3] * 30))
    with pytest.raises(OneshuiError, match="and all of forget; use the data set that the split was made for"):
        split.restricted_to(drop_photos(faces, set(split.support.values())))


PUBLISHED = [("celeba", (5, 10)), ("celebahq", (20, 50)), ("mufac", (5, 10))]


@pytest.mark.parametrize(("name", "sizes"), PUBLISHED)
def test_published_annotations_reproduce_the_published_splits(assets: Path, name: str, sizes: tuple[int, int]) -> None:
    photos = load_photo_keys(name, assets / "annotations" / name)
    for seed in range(3):
        for size in sizes:
            split = make_split(photos, seed, size)
            assert hashlib.sha256(split.dumps()).hexdigest() == published_checksum(name, seed, size), (seed, size)
            images = [sum(len(photos[person]) for person in split.people[part]) for part in ("train", "val", "test")]
            assert [100 * count / sum(images) for count in images] == pytest.approx([60, 20, 20], abs=2)


def test_unpublished_splits_have_no_checksum() -> None:
    assert published_checksum("celeba", 3, 5) is None
    assert published_checksum("celeba", 0, 6) is None
    assert published_checksum("photos", 0, 5) is None
