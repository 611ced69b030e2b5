"""Face encoders: they map a photo to an embedding, a unit vector; embeddings of photos of one person are close together.

There are two kinds. dlib's network was trained for face recognition; it is an optional extra (`pip install "oneshui-hf[faces]"`). Any image
model of transformers can be used instead: it encodes the whole photo, was trained for other tasks, and is less accurate.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..data.image_modes import ModeError, to_rgb
from ..errors import OneshuiError, UsageError, first_line
from ..models.checks import reject_code, reject_pickles
from ..models.load import quiet_transformers
from ..models.processors import load_processor
from ..runs import hash_file
from ..seeding import seeded

if TYPE_CHECKING:
    from PIL.Image import Image

DLIB, NONE = "dlib", "none"
DLIB_WEIGHTS = "face_recognition_models"
LANDMARKS = "shape_predictor_5_face_landmarks.dat"  # free to use, like the network; the predictor of 68 landmarks is not
NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
DIMENSIONS, CHIP, PADDING = 128, 150, 0.25  # as in the training of the network
SIDES = (256, 512, 1024)  # shorter sides at which a photo is searched for a face, in pixels
SMALL = 512  # smaller photos are enlarged up to this side
MAX_ASPECT = 4  # longer side over shorter side
LENIENT = -0.5  # lowest detector score of an accepted face, if no score is above 0
BATCH = 16
RECIPE = "1"  # part of an encoder's name; must be increased when embeddings change for the same weights
EXTRA = 'pip install "oneshui-hf[faces]"'


class FaceEncoder(Protocol):
    """Computes embeddings of photos.

    Attributes:
        name: Its kind and a hash of its weights. Embeddings are comparable only between encoders of the same name.
    """

    name: str

    def __call__(self, photos: Sequence[Image | np.ndarray]) -> torch.Tensor:
        """Return the embeddings of photos, float32 (n, d), on the CPU.

        Rows have unit length. The row of a photo without an embedding is NaN. A photo's embedding does not depend on the other photos.

        Args:
            photos: Upright, RGB, of any size: PIL images, or uint8 (H, W, 3).

        Raises:
            UsageError: A photo has another type, dtype or shape.
        """
        ...


def load_encoder(name: str | None, device: torch.device | str = "cpu") -> FaceEncoder | None:
    """Load an encoder.

    Args:
        name: "dlib"; "none"; or a Hub id or folder of any image model of transformers. None: dlib if it is installed.
        device: For a model of transformers; dlib runs on the CPU.

    Returns:
        None if the name is "none", or if it is None and dlib is not installed: people are not identified by photos then.

    Raises:
        UsageError: dlib is requested and not installed, or the model does not exist.
        OneshuiError: The model's weights are pickled, damaged or incomplete, or it brings its own code.
    """
    if name == NONE or (name is None and not dlib_is_installed()):
        return None
    if name in (None, DLIB):
        return DlibEncoder()
    return TransformersEncoder(str(name), device)


def dlib_is_installed() -> bool:
    """Return whether dlib and its weights are installed, without importing them."""
    return all(importlib.util.find_spec(module) is not None for module in (DLIB, DLIB_WEIGHTS))


class DlibEncoder:
    """dlib's face network (King 2017): 128 numbers for the largest face, aligned by five landmarks.

    Embeddings are not centred. On 39 people of CelebA (half of them unseen, with a false match rate of 1 %), 19 % of enrolled people's
    photos were rejected without centring and 30 % with it, at 64 pixels; 42 % and 45 % at 56 pixels.

    The network was trained on celebrities, so it may be more accurate on those of public data sets than on other people. Its files are in
    dlib's own format, which contains numbers and no code.
    """

    def __init__(self) -> None:
        """Load the detector, the landmark predictor and the network.

        Raises:
            UsageError: dlib or its weights are not installed.
        """
        if not dlib_is_installed():
            raise UsageError(
                f"dlib, which identifies people by face, is not installed; run `{EXTRA}`, or name the person with --identity instead."
            )
        import dlib  # type: ignore[import-untyped, import-not-found, unused-ignore]

        landmarks, network = _weights_file(LANDMARKS), _weights_file(NETWORK)
        self.name = f"{DLIB}-{_digest(RECIPE, hash_file(landmarks), hash_file(network))}"
        self._detector: Any = dlib.get_frontal_face_detector()
        self._landmarks: Any = dlib.shape_predictor(str(landmarks))
        self._network: Any = dlib.face_recognition_model_v1(str(network))
        self._chip: Any = dlib.get_face_chip

    def __call__(self, photos: Sequence[Image | np.ndarray]) -> torch.Tensor:
        """Return the embeddings, float32 (n, 128); NaN if no face is found."""
        embeddings = torch.full((len(photos), DIMENSIONS), math.nan)
        for row, photo in enumerate(photos):
            if (found := self._largest_face(_as_image(photo))) is not None:
                chip = self._chip(*found, CHIP, PADDING)
                embeddings[row] = torch.tensor(list(self._network.compute_face_descriptor(chip)))
        return F.normalize(embeddings, dim=1)

    def count_faces(self, photo: Image | np.ndarray) -> int:
        """Return how many faces are found on a photo. A face that is only found with the lower threshold counts as one."""
        return len(self._find_faces(_as_image(photo))[1])

    def _largest_face(self, photo: Image) -> tuple[np.ndarray, Any] | None:
        """Return the pixels of a photo, at the size at which a face was found, and the face's landmarks; None if no face is found."""
        pixels, faces = self._find_faces(photo)
        if not faces:
            return None
        return pixels, self._landmarks(pixels, max(faces, key=lambda face: face.area()))

    def _find_faces(self, photo: Image) -> tuple[np.ndarray, list[Any]]:
        """Return the pixels of a photo, at the size at which faces were found, and the faces.

        The detector finds faces of 80 pixels a side and more. Small photos are therefore enlarged, and large ones are searched at a small
        size first: the largest face is found first, and a portrait of 12 megapixels takes no longer than one of half a megapixel. If no
        face is found, the photo is searched again with a lower detection threshold, for the most certain face: this finds a face in 50 of
        62 photos of 56 pixels, and their embeddings are nearly as good (the nearest neighbour is the same person for 70 %, against 86 % of
        the other photos). Encoding the whole photo instead would reach 6 %, so a photo without a face has no embedding.
        """
        sides = [side for side in SIDES if side <= max(SMALL, min(photo.size))]
        for side in sides:
            pixels = _resize(photo, side)
            if faces := self._detector(pixels, 0):
                return pixels, list(faces)
        pixels = _resize(photo, SIDES[0])
        faces, scores, _ = self._detector.run(pixels, 0, LENIENT)
        return pixels, [faces[int(np.argmax(scores))]] if faces else []


def _weights_file(file: str) -> Path:
    """Return the path of a file of dlib's weights. Their package is not imported: it requires a module that recent setuptools lack."""
    spec = importlib.util.find_spec(DLIB_WEIGHTS)
    folders = (spec.submodule_search_locations or []) if spec else []
    path = next((path for folder in folders if (path := Path(folder) / "models" / file).is_file()), None)
    if path is None:
        raise UsageError(f"The package of dlib's weights lacks {file}; run `{EXTRA}` again, or name the person with --identity instead.")
    return path


def _resize(photo: Image, side: int) -> np.ndarray:
    """Return a photo with a shorter side of `side` pixels, uint8 (H, W, 3); smaller if its aspect ratio exceeds `MAX_ASPECT`."""
    from PIL import Image

    scale = min(side / min(photo.size), MAX_ASPECT * side / max(photo.size))
    width, height = (max(1, round(length * scale)) for length in photo.size)
    return np.ascontiguousarray(np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC)))


class TransformersEncoder:
    """Any image model of transformers: pooled output for the whole photo, otherwise CLS token, otherwise the mean over positions."""

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        """Load a model and its image processor.

        Args:
            source: A Hub id, or a folder.
            device: Device of the model.

        Raises:
            UsageError: The model does not exist, or its input is not an image.
            OneshuiError: Its weights are pickled, damaged or incomplete, or it brings its own code.
        """
        from safetensors import SafetensorError
        from transformers import AutoModel

        reject_pickles(source)
        reject_code(source)
        try:
            with quiet_transformers(), seeded(0, "encoder"):  # missing weights are initialised from the global random state
                self._processor: Any = load_processor(source)
                model, info = AutoModel.from_pretrained(
                    source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
                )
        except SafetensorError as error:
            raise OneshuiError(f"The weights of {source} are damaged ({first_line(error)}); download them again.") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"Image model '{source}' does not exist: {first_line(error)}") from None
        tower = getattr(model, "vision_model", model)  # the image encoder of a vision-language model
        if tower.main_input_name != "pixel_values":
            raise UsageError(f"{source} is not an image model; name another, or dlib.")
        missing = sorted(info["missing_keys"])
        if rest := [name for name in missing if "pooler" not in name]:
            raise OneshuiError(f"The weights of {source} lack {rest[0]}; use a complete checkpoint.")
        self._pooled = not missing  # a classifier's checkpoint has no pooler, and transformers has initialised one at random
        self._has_cls = any(name.endswith(("cls_token", "class_embedding")) for name, _ in tower.named_parameters())
        self._model: Any = tower.eval().to(device)
        self._device = device
        weights = (f"{name}{tensor.shape}".encode() + tensor.cpu().numpy().tobytes() for name, tensor in sorted(tower.state_dict().items()))
        self.name = f"{tower.config.model_type}-{_digest(RECIPE, self._processor.to_json_string(), *weights)}"

    @torch.no_grad()
    def __call__(self, photos: Sequence[Image | np.ndarray]) -> torch.Tensor:
        """Return the embeddings, float32 (n, d)."""
        images = [_as_image(photo) for photo in photos]
        if not images:
            return torch.zeros(0, 0)
        parts = [self._features(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return F.normalize(torch.cat(parts), dim=1)

    def _features(self, images: list[Image]) -> torch.Tensor:
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._device)
        output = self._model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None) if self._pooled else None
        if pooled is None:
            hidden = output.last_hidden_state
            # (n, d, h, w) of convolutions, (n, 1 + patches, d) with a CLS token, (n, patches, d) without
            pooled = hidden.mean((2, 3)) if hidden.dim() == 4 else hidden[:, 0] if self._has_cls else hidden.mean(1)
        return pooled.flatten(1).float().cpu()


def _as_image(photo: Image | np.ndarray) -> Image:
    from PIL import Image

    if isinstance(photo, Image.Image):
        try:
            return to_rgb(photo)
        except ModeError as error:
            raise UsageError(f"A photo {error}") from None
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise UsageError(f"A photo must be a PIL image or uint8 (H, W, 3), not {photo.dtype} {photo.shape}.")
    return Image.fromarray(photo)


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:12]
