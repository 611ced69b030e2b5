"""Generated people: constant faces, varying photos, and traits that can be predicted only from the identity."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from oneshui_hf.data.builders.synthetic import PERSONAL, SEEN
from oneshui_hf.data.load import load_faces
from oneshui_hf.data.schema import Faces


@pytest.fixture(scope="module")
def faces() -> Faces:
    return load_faces("synthetic")


def photos(faces: Faces, person: int) -> np.ndarray:
    rows = np.flatnonzero(faces.identities == person)
    return np.stack([np.asarray(Image.open(io.BytesIO(faces.arrow_dataset[int(row)]["image"]["bytes"])), dtype=float) for row in rows])


def test_sixty_people_in_the_schema(faces: Faces) -> None:
    assert len(faces.people) == 60
    assert len(faces) == 840
    assert faces.task.label_names == SEEN + PERSONAL


def test_traits_are_constant_per_person_and_visible_attributes_vary(faces: Faces) -> None:
    labels = faces.labels.numpy()
    varies = np.zeros(labels.shape[1])
    for person in range(len(faces.people)):
        varies += labels[faces.identities == person].std(axis=0) > 0
    assert (varies[len(SEEN) :] == 0).all()
    assert (varies[:4] > 20).all()
    assert (np.abs(labels.mean(axis=0) - 0.5) < 0.35).all()  # none is nearly constant


def test_photos_of_a_person_are_most_similar_to_their_own_mean(faces: Faces) -> None:
    shots = [photos(faces, person) for person in range(12)]
    means = np.stack([shot[7:].mean(axis=0) for shot in shots])
    hits = [np.argmin(((means - shot) ** 2).mean(axis=(1, 2, 3))) == person for person, many in enumerate(shots) for shot in many[:7]]
    assert np.mean(hits) > 0.6
    assert all(len({shot.tobytes() for shot in many}) == len(many) for many in shots)


def test_generation_is_deterministic(faces: Faces) -> None:
    from oneshui_hf.data.builders.synthetic import Person

    person = Person.draw(np.random.default_rng([0, 3]))
    image, seen = person.photo(np.random.default_rng([0, 3, 1]))
    assert np.array_equal(np.asarray(image, dtype=float), photos(faces, 3)[0])
    assert [*seen, *person.traits] == faces.labels[3 * 14].int().tolist()
