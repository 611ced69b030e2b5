"""A photo unlike all photos of unseen identities is recognised, and a portrait of an unseen identity is not taken for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from oneshui_hf.data.builders.synthetic import Person
from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.images import to_pixels
from oneshui_hf.stages.photo_range import MIN_PEOPLE, PHOTO_RANGE, measure_photo_range, photo_statistics, unlike_photos

SIDE = 32


def portraits(people: range, photos: int) -> tuple[np.ndarray, torch.Tensor]:
    """Return portraits of generated people, uint8 (n, 3, SIDE, SIDE), and the person on each."""
    pixels, numbers = [], []
    for number in people:
        person = Person.draw(np.random.default_rng([0, number]))
        for photo in range(photos):
            pixels.append(to_pixels(person.photo(np.random.default_rng([0, number, photo]))[0], SIDE))
            numbers.append(number)
    return np.stack(pixels), torch.tensor(numbers)


def face_set(pixels: np.ndarray, people: torch.Tensor) -> FaceSet:
    return FaceSet(pixels, np.arange(len(people)), torch.zeros(len(people), 2), people, None, ())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def val() -> FaceSet:
    """Four photos of each of 16 people."""
    return face_set(*portraits(range(16), 4))


@pytest.fixture(scope="module")
def report(val: FaceSet) -> dict[str, Any]:
    return measure_photo_range(val)


def unlike(pixels: np.ndarray, report: dict[str, Any]) -> list[bool]:
    found = unlike_photos(torch.from_numpy(pixels), report)
    assert found is not None
    return found


def test_portraits_of_other_people_are_not_unlike(report: dict[str, Any]) -> None:
    assert sum(unlike(portraits(range(100, 150), 2)[0], report)) <= 2  # of 100


def test_pictures_that_show_no_face_are_unlike(report: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    rows, columns = np.indices((SIDE, SIDE))
    pictures = {
        "noise": random.integers(0, 256, (3, SIDE, SIDE)),
        "uniform": np.full((3, SIDE, SIDE), 120),
        "gradient": np.stack([columns * 8, columns * 0, 255 - columns * 8]),
        "stripes": np.broadcast_to(200 * (columns % 2), (3, SIDE, SIDE)),
        "checkerboard": np.broadcast_to(200 * ((rows // 2 + columns // 2) % 2), (3, SIDE, SIDE)),
        "shuffled portrait": portraits(range(1), 1)[0][0].reshape(3, -1)[:, random.permutation(SIDE**2)].reshape(3, SIDE, SIDE),
    }
    found = unlike(np.stack([*pictures.values()]).astype(np.uint8), report)
    assert dict(zip(pictures, found, strict=True)) == dict.fromkeys(pictures, True)


def independent_statistics(photo: np.ndarray) -> list[float]:
    """Return the statistics of one photo (3, S, S), pixel by pixel."""
    grey = photo.astype(float).mean(axis=0) / 255
    found = []
    for scale in (1, 2, 4):
        size = SIDE // scale
        small = np.array(
            [[grey[i * scale : (i + 1) * scale, j * scale : (j + 1) * scale].mean() for j in range(size)] for i in range(size)]
        )
        found += [np.log(np.abs(small[1:] - small[:-1]).mean() + 1e-3), np.log(np.abs(small[:, 1:] - small[:, :-1]).mean() + 1e-3)]
    found.append(np.corrcoef(grey.ravel(), grey[:, ::-1].ravel())[0, 1])
    colour = photo / 255 - grey
    for part in (colour, colour - colour.mean(axis=(1, 2), keepdims=True)):
        found.append(np.log(part.std(ddof=1) + 1e-2))
    return [float(value) for value in found]


def test_the_distance_is_that_of_mahalanobis(val: FaceSet, report: dict[str, Any]) -> None:
    known = report[PHOTO_RANGE]
    photos, people = portraits(range(16), 4)
    points = np.array([independent_statistics(photo) for photo in photos])
    assert np.allclose(photo_statistics(torch.from_numpy(photos)), points)

    def distances(of: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        covariance = np.cov(fitted.T)
        covariance = 0.95 * covariance + 0.05 * np.diag(np.diag(covariance)) + 1e-6 * np.eye(9)
        differences = of - fitted.mean(axis=0)
        return np.sqrt(np.einsum("ni,ij,nj->n", differences, np.linalg.inv(covariance), differences))

    is_first = (people % 2 == 0).numpy()
    limit = max(distances(points[~is_first], points[is_first]).max(), distances(points[is_first], points[~is_first]).max())
    assert known["distance"] == pytest.approx(limit, rel=1e-5)
    assert (known["photos"], known["people"]) == (64, 16)
    new = portraits(range(100, 101), 1)[0]
    (distance,) = distances(np.array([independent_statistics(new[0])]), points)
    assert unlike(new, {PHOTO_RANGE: known | {"distance": distance * 1.001}}) == [False]
    assert unlike(new, {PHOTO_RANGE: known | {"distance": distance * 0.999}}) == [True]


def test_too_few_people_show_no_range(val: FaceSet) -> None:
    few = val.subset((val.identities < MIN_PEOPLE - 1).nonzero().squeeze(1))
    assert measure_photo_range(few) == {}
    assert unlike_photos(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), {}) is None
    assert unlike_photos(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), {PHOTO_RANGE: None}) is None


def test_grey_photos_have_a_range_as_well() -> None:
    pixels, people = portraits(range(12), 4)
    grey = np.repeat(pixels[:, :1], 3, axis=1)
    report = measure_photo_range(face_set(grey, people))
    others, _ = portraits(range(100, 110), 1)
    assert sum(unlike(np.repeat(others[:, :1], 3, axis=1), report)) <= 1
