"""Decodes one photo and resizes it to the pixels that a model sees.

Training and unlearning requests use the same two functions, so a photo has the same pixels in both.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OneshuiError
from ..option_values import shown
from .image_metadata import without_metadata

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MAX_PIXELS = 100_000_000  # 100 megapixels; a decompression bomb is larger
MIN_SIDE = 16

# Only formats of photos: for EPS, Pillow would start Ghostscript. The MPO of a phone starts with a JPEG, which is read.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "JPEG2000", "PPM")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mpo", ".avif", ".jp2", ".ppm", ".pgm")


class ImageError(OneshuiError):
    """An image cannot be used."""


def decode(source: str | Path | bytes | Image, where: str | None = None) -> Image:
    """Decode one complete photo to 8-bit RGB, as people see it: upright (EXIF), transparent parts on white. See `image_modes.to_rgb`.

    Args:
        source: A path, an encoded file's bytes, or a PIL image.
        where: Its name in messages. The path by default.

    Raises:
        ImageError: The photo is missing, unreadable, not an image, truncated, smaller than 16 pixels a side, or larger than 100 megapixels.
    """
    from PIL import Image, UnidentifiedImageError

    where = where or (str(source) if isinstance(source, str | Path) else "the image")
    try:
        if isinstance(source, str | Path) and Path(source).exists() and not (Path(source).is_file() or Path(source).is_dir()):
            raise ImageError(f"{where} is not a regular file.")  # opening a pipe would block
        return _decode_any(source, where)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{where} does not exist.") from None
    except IsADirectoryError:
        raise ImageError(f"{where} is a folder, not an image.") from None
    except NotADirectoryError:
        raise ImageError(f"{where} does not exist: the part before the last / is a file, not a folder.") from None
    except PermissionError:
        raise ImageError(f"{where} cannot be read: permission denied. Change its permissions.") from None
    except UnidentifiedImageError:
        if _starts_with(source, LFS_POINTER):
            raise ImageError(f"{where} is a Git LFS pointer, not the photo itself; run `git lfs pull` in its repository.") from None
        raise ImageError(f"{where} is not an image that can be read (JPEG, PNG, WebP, ...).") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{where} is over the limit of {MAX_PIXELS // 10**6} megapixels.") from None
    except Exception as error:  # Pillow raises many kinds of errors for damaged files and unusual tags
        if isinstance(error, OSError) and error.strerror:  # of the file system
            raise ImageError(f"{shown(where)} cannot be read: {error.strerror}.") from None
        raise ImageError(f"{where} is damaged or truncated ({error}); use the original file.") from None


def _decode_any(source: str | Path | bytes | Image, where: str) -> Image:
    """Decode a photo; if Pillow cannot, decode its pixels without the metadata, which may be the reason."""
    from PIL.Image import DecompressionBombError

    about_the_file = (ImageError, DecompressionBombError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
    try:
        return _decode(source, where)
    except about_the_file:
        raise
    except Exception as error:
        for keep_orientation in (True, False):
            if not isinstance(source, str | Path | bytes) or (bare := without_metadata(source, keep_orientation=keep_orientation)) is None:
                break
            try:
                return _decode(bare, where)
            except about_the_file:
                raise
            except Exception as again:
                error.add_note(f"Without metadata: {again}")
        raise


def _decode(source: str | Path | bytes | Image, where: str) -> Image:
    from .image_modes import ModeError, to_rgb

    image = open_image(source)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{where} is {width}x{height} pixels, over the limit of {MAX_PIXELS // 10**6} megapixels.")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{where} is {width}x{height} pixels; a portrait needs at least {MIN_SIDE} a side.")
    reopen = (lambda: open_image(source)) if isinstance(source, str | Path | bytes) else None
    try:
        return to_rgb(image, reopen)
    except ModeError as error:
        raise ImageError(f"{where} {error}") from None


def _starts_with(source: str | Path | bytes | Image, prefix: bytes) -> bool:
    if isinstance(source, str | Path):
        with Path(source).open("rb") as opened:
            return opened.read(len(prefix)) == prefix
    return isinstance(source, bytes) and source.startswith(prefix)


def open_image(source: str | Path | bytes | Image) -> Image:
    """Open an image of one of the `FORMATS`, without decoding it."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    Image.init()  # registers all formats; which ones exist depends on the build of Pillow
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `decode` has another limit
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about metadata, which is not used
    formats = [name for name in FORMATS if name in Image.OPEN]
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


def stored_mode(data: bytes) -> str:
    """Return the mode of the pixels in a photo's file, such as 'RGB' or 'RGBA', for a photo that `decode` accepts."""
    from PIL import UnidentifiedImageError

    try:
        return open_image(data).mode
    except (UnidentifiedImageError, ValueError):
        return open_image(without_metadata(data) or data).mode


def to_pixels(image: Image, size: int) -> np.ndarray:
    """Resize to an antialiased square, as the image processor of a run does: uint8 (3, size, size)."""
    import numpy as np
    from PIL import Image

    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
