"""Generated faces: people with stable looks, photographed in changing pose, light and expression. No download, no real person.

Some attributes are seen on the photo (glasses, hat, smile), some belong to the person and cannot be seen (is left-handed, likes
mornings): a model can know those of its training people only by recognising them, so memorising, and forgetting, shows.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from ..schema import Task
from .base import Annotations, FaceBuilder

SEEN = ("Glasses", "Hat", "Smiling", "Mouth_Open", "Beard", "Dark_Hair")
PERSONAL = ("Left_Handed", "Early_Riser", "Plays_Music", "Likes_Tea", "Speaks_Loud", "Tells_Jokes")
CANVAS = 96  # drawn large, then reduced, so that edges are smooth
SIDE = 48


@dataclass
class SyntheticConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """How many people, photos of each, and which draw of them."""

    people: int = 60
    photos: int = 14
    draw: int = 0


class Synthetic(FaceBuilder):
    """Generated faces."""

    BUILDER_CONFIG_CLASS = SyntheticConfig
    summary = "generated faces of people who do not exist: 12 attributes, 60 people"
    needs = "nothing: made on the spot"
    reads_folder = False

    def task(self) -> Task:
        """Return the attributes: six that are seen, six that belong to the person."""
        return Task("multi_label", SEEN + PERSONAL)

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of this module: the faces change only when it does."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:32]

    def annotations(self) -> Annotations:
        """Draw all people and their photos."""
        config = self.config
        keys, images, identities, labels = [], [], [], []
        for number in range(config.people):
            person = Person.draw(np.random.default_rng([config.draw, number]))
            for photo in range(config.photos):
                image, seen = person.photo(np.random.default_rng([config.draw, number, photo + 1]))
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                keys.append(f"person{number:03d}/{photo:02d}.png")
                images.append(buffer.getvalue())
                identities.append(f"person{number:03d}")
                labels.append([*seen, *person.traits])
        return Annotations(keys, images, identities, np.array(labels, dtype=np.int8))


Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Person:
    """What stays the same from photo to photo."""

    skin: Colour
    hair: Colour
    iris: Colour
    backdrop: Colour
    width: float
    length: float
    eyes_apart: float
    eye_size: float
    brow: float
    nose: float
    lips: float
    hairline: float
    long_hair: bool
    beard: bool
    habits: tuple[float, float, float]  # how often this person wears glasses, wears a hat, smiles
    traits: tuple[int, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Person:
        """Draw a person."""
        tone = rng.uniform(0.35, 1.0)
        dark = rng.random() < 0.5
        hair = rng.integers((15, 10, 5), (80, 60, 50)) if dark else rng.integers((150, 110, 50), (245, 205, 140))
        return cls(
            skin=_rgb(np.array((242, 205, 178)) * tone + rng.normal(0, 8, 3)),
            hair=_rgb(hair),
            iris=_rgb(rng.integers(20, 200, 3)),
            backdrop=_rgb(rng.integers(60, 230, 3)),
            width=rng.uniform(0.25, 0.36),
            length=rng.uniform(0.33, 0.43),
            eyes_apart=rng.uniform(0.10, 0.17),
            eye_size=rng.uniform(0.028, 0.055),
            brow=rng.uniform(0.008, 0.03),
            nose=rng.uniform(0.06, 0.14),
            lips=rng.uniform(0.08, 0.17),
            hairline=rng.uniform(0.10, 0.26),
            long_hair=bool(rng.random() < 0.5),
            beard=bool(rng.random() < 0.3),
            habits=(rng.beta(0.5, 0.8), rng.beta(0.5, 1.5), rng.beta(1.5, 1.5)),
            traits=tuple(int(bit) for bit in rng.random(len(PERSONAL)) < 0.5),
        )

    def photo(self, rng: np.random.Generator) -> tuple[Image.Image, list[int]]:
        """Take a photo; return it with the attributes that are seen on it."""
        glasses, hat, smile = (int(rng.random() < habit) for habit in self.habits)
        mouth_open = int(rng.random() < 0.35)
        backdrop = _rgb(np.array(self.backdrop) + rng.normal(0, 12, 3))
        image = Image.new("RGB", (CANVAS, CANVAS), backdrop)
        self._head(ImageDraw.Draw(image), rng, glasses, hat, smile, mouth_open)
        image = image.rotate(rng.normal(0, 6), Image.Resampling.BICUBIC, fillcolor=backdrop)
        image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.75, 1.25)))
        image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.85, 1.15)))
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 1.2)))).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, 5, (SIDE, SIDE, 3))
        dark_hair = int(sum(self.hair) < 3 * 80)
        seen = [glasses, hat, smile, mouth_open, int(self.beard), dark_hair]
        return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), seen

    def _head(self, pen: ImageDraw.ImageDraw, rng: np.random.Generator, glasses: int, hat: int, smile: int, mouth_open: int) -> None:
        size = CANVAS * rng.uniform(0.92, 1.08)
        x, y = CANVAS * (0.5 + rng.normal(0, 0.02)), CANVAS * (0.53 + rng.normal(0, 0.02))
        turn = rng.normal(0, 0.02) * size  # looking aside moves the features on the face
        w, h = self.width * size, self.length * size
        if self.long_hair:
            pen.rounded_rectangle((x - w * 1.2, y - h * 1.1, x + w * 1.2, y + h * 1.15), radius=w * 0.8, fill=self.hair)
        pen.ellipse((x - w * 1.1, y - h * 1.15, x + w * 1.1, y + h * 0.2), fill=self.hair)
        pen.ellipse((x - w, y - h, x + w, y + h), fill=self.skin)
        pen.chord((x - w, y - h, x + w, y + h), 180 + 60 * self.hairline, 360 - 60 * self.hairline, fill=self.hair)
        if self.beard:
            pen.chord((x - w, y - h, x + w, y + h), 25, 155, fill=self.hair)
        eye_y, r = y - 0.08 * size, self.eye_size * size
        for side in (-1, 1):
            eye_x = x + turn + side * self.eyes_apart * size
            pen.ellipse((eye_x - 1.5 * r, eye_y - r, eye_x + 1.5 * r, eye_y + r), fill=(245, 245, 245))
            pen.ellipse((eye_x - 0.8 * r, eye_y - 0.8 * r, eye_x + 0.8 * r, eye_y + 0.8 * r), fill=self.iris)
            brow = max(1, round(self.brow * size))
            pen.line((eye_x - 2 * r, eye_y - 2.2 * r, eye_x + 2 * r, eye_y - 2.2 * r), fill=self.hair, width=brow)
            if glasses:
                pen.ellipse((eye_x - 2.4 * r, eye_y - 2 * r, eye_x + 2.4 * r, eye_y + 2 * r), outline=(20, 20, 20), width=2)
        shade = _rgb(np.array(self.skin) * 0.72)
        pen.line((x + turn, eye_y + r, x + turn * 1.6, eye_y + self.nose * size), fill=shade, width=3)
        self._mouth(pen, x + turn, y + 0.19 * size, size, smile, mouth_open)
        if hat:
            colour = _rgb(255 - np.array(self.hair))
            pen.rectangle((x - w, y - h * 1.25, x + w, y - h * 0.72), fill=colour)
            pen.rectangle((x - w * 1.3, y - h * 0.8, x + w * 1.3, y - h * 0.68), fill=colour)

    def _mouth(self, pen: ImageDraw.ImageDraw, x: float, y: float, size: float, smile: int, mouth_open: int) -> None:
        half, lip = self.lips * size, (165, 50, 60)
        if mouth_open:
            pen.ellipse(
                (x - half * 0.7, y - 0.02 * size, x + half * 0.7, y + 0.07 * size),
                fill=(70, 15, 20),
                outline=lip,
                width=2,
            )
        elif smile:
            pen.arc((x - half, y - 0.09 * size, x + half, y + 0.05 * size), 20, 160, fill=lip, width=4)
        else:
            pen.line((x - half, y, x + half, y), fill=lip, width=4)


def _rgb(values: np.ndarray) -> Colour:
    r, g, b = np.clip(np.asarray(values, dtype=float), 0, 255).astype(int).tolist()
    return (r, g, b)
