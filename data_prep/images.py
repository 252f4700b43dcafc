"""Encoded bytes or raw rows to the pixels of a sample: decode, centre crop to a square, resize.

The resize is PIL's bicubic filter, whose support grows with the reduction (antialiasing): what FID implementations
agree on (clean-fid). OpenCV's and torch's default bicubic read four source pixels per output pixel at any
reduction, which aliases hair and edges and shifts FID by points.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from data_prep.source import BrokenImageError, Pixels

MODES = {1: "L", 3: "RGB"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")  # PIL would run Ghostscript for some others
MAX_PIXELS = 1 << 26
_EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


def software() -> dict[str, str | None]:
    """What the pixels depend on besides the source: the decoder's and the resizer's versions."""
    return {"pillow": Image.__version__, "libjpeg": features.version("jpg")}


def _refuse(image: Image.Image) -> None:
    """BrokenImageError for what must not or cannot become one 8-bit image; judged by the header alone."""
    if image.width * image.height > MAX_PIXELS:
        raise BrokenImageError(f"has {image.width} × {image.height} pixels, more than the limit of {MAX_PIXELS:,}")
    if image.mode not in _EIGHT_BIT:
        raise BrokenImageError(f"has pixels of more than 8 bits (mode {image.mode}), save it with 8")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise BrokenImageError("is an animation, save one of its frames")


def decode(encoded: bytes, channels: int) -> Image.Image:
    """The upright image with 1 or 3 channels. BrokenImageError if it does not decode to the end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _refuse has the stricter limit
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        _refuse(image)
        image.load()
        return ImageOps.exif_transpose(image).convert(MODES[channels])
    except BrokenImageError:
        raise
    except Image.DecompressionBombError as e:
        raise BrokenImageError(f"has more pixels than the limit of {MAX_PIXELS:,}") from e
    except UnidentifiedImageError as e:
        raise BrokenImageError(f"is no image ({', '.join(FORMATS)})" if encoded else "is empty") from e
    except Exception as e:  # damaged images raise almost anything
        raise BrokenImageError(f"does not decode: {e}") from e


def fit(image: Image.Image, size: int, crop: int | None = None) -> Pixels:
    """The centred square of `crop` pixels, by default the largest, resized to size × size: uint8 [size, size, C]."""
    side = crop or min(image.size)
    if side > min(image.size):
        raise BrokenImageError(f"has {image.width} × {image.height} pixels, too few for --crop {side}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    if side != size:
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(size, size, -1)


def fit_rows(row: Pixels, size: int) -> Pixels:
    """`fit` for raw pixels: uint8 [H, W, C] to [size, size, C]."""
    if row.shape[:2] == (size, size):
        return row
    return fit(Image.fromarray(row.squeeze(2) if row.shape[2] == 1 else row), size)
