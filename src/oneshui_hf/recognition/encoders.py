"""Face encoders: from a photo to its signature, a direction in which photos of one person lie close together.

Two kinds. dlib's network was trained to tell people apart; it is an optional extra (`pip install "oneshui-hf[faces]"`). Any image model
of transformers can stand in: it sees the whole photo, tells people apart by whatever it was trained to see, and is worse at it.
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

from ..errors import OneshuiError, UsageError
from ..models.load import _first_line, _quiet, refuse_pickles
from ..runs import hash_file
from ..seeding import seeded

if TYPE_CHECKING:
    from PIL.Image import Image

DLIB, NONE = "dlib", "none"
DLIB_WEIGHTS = "face_recognition_models"
LANDMARKS = "shape_predictor_5_face_landmarks.dat"  # free to use, as the network; the one of 68 landmarks is not
NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
DIMENSIONS, CHIP, PADDING = 128, 150, 0.25  # as the network was trained
SIDES = (256, 512, 1024)  # shorter side of a photo in which a face is looked for, in pixels
SMALL = 512  # photos smaller than this are enlarged up to it
LONGEST = 4  # times the shorter side
LENIENT = -0.5  # the detector's score of a face that is accepted where there is none above 0
BATCH = 16
RECIPE = "1"  # part of an encoder's name; to be raised when its signatures change for the same weights
EXTRA = 'pip install "oneshui-hf[faces]"'


class Encoder(Protocol):
    """Makes signatures of photos.

    Attributes:
        name: Its kind and a hash of its weights. Signatures are comparable where the names are equal, and only there.
    """

    name: str

    def __call__(self, photos: Sequence[Image | np.ndarray]) -> torch.Tensor:
        """Return the signatures of some photos, float32 (n, d), on the CPU.

        Rows have unit length, or are NaN where no signature can be made of a photo. A photo's signature does not depend on the others.

        Args:
            photos: Upright, in RGB, of any size: PIL images, or uint8 (H, W, 3).

        Raises:
            UsageError: A photo is something else.
        """
        ...


def load_encoder(name: str | None, device: torch.device | str = "cpu") -> Encoder | None:
    """Load an encoder.

    Args:
        name: "dlib"; "none"; a Hub id or a folder of any image model of transformers. None: dlib where it is installed.
        device: For a model of transformers; dlib works on the CPU.

    Returns:
        None where the name is "none", or None and dlib is not installed: photos are not recognised then.

    Raises:
        UsageError: dlib is asked for and not installed, or there is no such model.
        OneshuiError: The model's weights are pickled, damaged or incomplete.
    """
    if name == NONE or (name is None and not dlib_is_installed()):
        return None
    if name in (None, DLIB):
        return DlibEncoder()
    return ModelEncoder(str(name), device)


def dlib_is_installed() -> bool:
    """Whether dlib and its weights are there; neither is imported."""
    return all(importlib.util.find_spec(module) is not None for module in (DLIB, DLIB_WEIGHTS))


class DlibEncoder:
    """dlib's face network (King 2017): 128 numbers of the largest face, aligned by five landmarks.

    The numbers are not centred. On 39 people of CelebA (half of them strangers, of whose photos 1 % may be accepted) 19 % of people's own
    photos were refused without a centre and 30 % with one, at 64 pixels; 42 % and 45 % at 56.

    The network was trained on celebrities, so it may know those of public data sets better than anybody else. Its files are in dlib's own
    format, which holds numbers and runs no code.
    """

    def __init__(self) -> None:
        """Load the detector, the landmarks and the network.

        Raises:
            UsageError: dlib or its weights are not installed.
        """
        if not dlib_is_installed():
            raise UsageError(
                f"dlib, which finds people by their faces, is not installed; run `{EXTRA}`, or name the person with --identity instead."
            )
        import dlib  # type: ignore[import-untyped, import-not-found, unused-ignore]

        landmarks, network = _weights(LANDMARKS), _weights(NETWORK)
        self.name = f"{DLIB}-{_digest(RECIPE, hash_file(landmarks), hash_file(network))}"
        self._detector: Any = dlib.get_frontal_face_detector()
        self._landmarks: Any = dlib.shape_predictor(str(landmarks))
        self._network: Any = dlib.face_recognition_model_v1(str(network))
        self._chip: Any = dlib.get_face_chip

    def __call__(self, photos: Sequence[Image | np.ndarray]) -> torch.Tensor:
        """Return the signatures, float32 (n, 128); NaN where no face is found."""
        signatures = torch.full((len(photos), DIMENSIONS), math.nan)
        for row, photo in enumerate(photos):
            if (found := self._largest_face(_as_image(photo))) is not None:
                chip = self._chip(*found, CHIP, PADDING)
                signatures[row] = torch.tensor(list(self._network.compute_face_descriptor(chip)))
        return F.normalize(signatures, dim=1)

    def _largest_face(self, photo: Image) -> tuple[np.ndarray, Any] | None:
        """Return a photo's pixels, at the size at which a face was found, and the face's landmarks; None where there is no face.

        The detector sees faces of 80 pixels a side and more. So small photos are enlarged, and large ones are shown small first: the
        largest face is found soonest, and a portrait of 12 megapixels costs no more than one of half a megapixel. A face that is seen
        nowhere is looked for once more, less strictly: of 62 photos of 56 pixels, 50 have one then, and their signatures are nearly as good
        (70 % nearest to their own person, 86 % of the others). With the whole photo in place of a face it were 6 %, so there is none.
        """
        sides = [side for side in SIDES if side <= max(SMALL, min(photo.size))]
        for side in sides:
            pixels = _shown(photo, side)
            if faces := self._detector(pixels, 0):
                return pixels, self._landmarks(pixels, max(faces, key=lambda face: face.area()))
        pixels = _shown(photo, SIDES[0])
        faces, scores, _ = self._detector.run(pixels, 0, LENIENT)
        if not faces:
            return None
        return pixels, self._landmarks(pixels, faces[int(np.argmax(scores))])


def _weights(file: str) -> Path:
    """Return where a file of dlib's weights lies. Their package is not imported: it needs what recent setuptools no longer have."""
    spec = importlib.util.find_spec(DLIB_WEIGHTS)
    folders = (spec.submodule_search_locations or []) if spec else []
    path = next((path for folder in folders if (path := Path(folder) / "models" / file).is_file()), None)
    if path is None:
        raise UsageError(f"The package of dlib's weights lacks {file}; run `{EXTRA}` again, or name the person with --identity instead.")
    return path


def _shown(photo: Image, side: int) -> np.ndarray:
    """Return a photo with its shorter side of `side` pixels, uint8 (H, W, 3); smaller where it is a long strip."""
    from PIL import Image

    scale = min(side / min(photo.size), LONGEST * side / max(photo.size))
    width, height = (max(1, round(length * scale)) for length in photo.size)
    return np.ascontiguousarray(np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC)))


class ModelEncoder:
    """Any image model of transformers: its pooled output, or else its CLS token, or else the mean over positions, of the whole photo."""

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        """Load a model and its image processor.

        Args:
            source: A Hub id, or a folder.
            device: Where it computes.

        Raises:
            UsageError: There is no such model.
            OneshuiError: Its weights are pickled, damaged or incomplete, or it is no model of images.
        """
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel

        refuse_pickles(source)
        try:
            with _quiet(), seeded(0, "encoder"):  # weights that a checkpoint lacks are drawn, from global state
                self._processor: Any = AutoImageProcessor.from_pretrained(source, backend="pil")
                model, told = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
        except SafetensorError as error:
            raise OneshuiError(f"The weights of {source} are damaged ({_first_line(error)}); fetch them again.") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"There is no model of images '{source}': {_first_line(error)}") from None
        tower = getattr(model, "vision_model", model)  # of a model of images and text, the half that sees
        if tower.main_input_name != "pixel_values":
            raise UsageError(f"{source} is no model of images; name another, or dlib.")
        lacking = sorted(told["missing_keys"])
        if rest := [name for name in lacking if "pooler" not in name]:
            raise OneshuiError(f"The weights of {source} lack {rest[0]}; take a complete checkpoint.")
        self._pooled = not lacking  # a classifier's checkpoint has no pooler, and transformers has just drawn one at random
        self._has_cls = any(name.endswith(("cls_token", "class_embedding")) for name, _ in tower.named_parameters())
        self._model: Any = tower.eval().to(device)
        self._device = device
        weights = (f"{name}{tensor.shape}".encode() + tensor.cpu().numpy().tobytes() for name, tensor in sorted(tower.state_dict().items()))
        self.name = f"{tower.config.model_type}-{_digest(RECIPE, self._processor.to_json_string(), *weights)}"

    @torch.inference_mode()
    def __call__(self, photos: Sequence[Image | np.ndarray]) -> torch.Tensor:
        """Return the signatures, float32 (n, d)."""
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
        return photo.convert("RGB")
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise UsageError(f"A photo is a PIL image or uint8 (H, W, 3), not {photo.dtype} {photo.shape}.")
    return Image.fromarray(photo)


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:12]
