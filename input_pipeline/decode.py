"""Encoded bytes to RGB pixels: simplejpeg for JPEG, Pillow and OpenCV for the rest.

simplejpeg decodes a 256 px JPEG in about a third of Pillow's time and lets other threads run.
"""

import contextlib
import importlib.util
import io
import struct
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

# Larger pictures are refused before they take memory. 128 Mi pixels are 400 MB as RGB, and more
# than the 108 megapixels of today's phones.
MAX_PIXELS = 2**27
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check_size` says it

HAS_AVIF = bool(features.check("avif"))  # from Pillow 11.3 on
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None  # extra `heif`
# The allowed formats of a file's content, whatever its name. Pillow opens more formats, some with
# other programs (EPS runs Ghostscript).
_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]  # MPO is opened as JPEG
_FORMATS += ["AVIF"] * HAS_AVIF
_ORIENTATION = 0x0112


class DecodeError(Exception):
    """A picture cannot be decoded completely. The message is the reason without the file's name."""


class Limits(NamedTuple):
    """The most pixels of a picture, by the memory that decoding one takes."""

    jpeg: int = MAX_PIXELS  # 3 bytes each
    other: int = MAX_PIXELS  # up to 31 (WebP with transparency)
    png_16_bit: int = MAX_PIXELS  # up to 60


_DEFAULT = Limits()


def decode(data: bytes, limits: Limits = _DEFAULT) -> np.ndarray:
    """Decodes one picture.

    Applies the EXIF orientation. Grey, palette and CMYK become RGB; 16 bits per channel are scaled
    to 8; transparent pictures are laid over white; an animation gives its first frame, a file of
    several pages its first page.

    Args:
        data: the content of a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file, or of a HEIC file where
            pillow-heif is installed; the file's name does not matter.
        limits: larger pictures are refused before they take memory.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        DecodeError: not a picture, damaged or cut short (a half-grey picture is never returned), or
            larger than its limit.
    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            height, width, components, has_exif = _jpeg_header(data)
            check_size(height, width, limits.jpeg)
            if components in (1, 3):  # Pillow decodes CMYK, and files with an unknown header
                pixels = simplejpeg.decode_jpeg(data)
                return _upright(pixels, data) if has_exif else pixels
        return _decode_other(data, limits)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:  # its message names an object in memory
        raise DecodeError(f"no {', '.join(_FORMATS)} file" if data else "empty file") from error
    except Exception as error:  # codecs raise many types: OSError, ValueError, SyntaxError, zlib's…
        raise DecodeError(str(error) or type(error).__name__) from error


def check_size(height: int, width: int, most: int = MAX_PIXELS) -> None:
    """Raises DecodeError for a picture of more than `most` pixels."""
    if height * width > most:
        raise DecodeError(f"{width}×{height} px are more than the {most:,} pixels allowed")


def _decode_other(data: bytes, limits: Limits) -> np.ndarray:
    with _open(data) as image:
        wide = image.format == "PNG" and data[24] == 16  # bit depth, in the IHDR chunk
        check_size(image.height, image.width, limits.png_16_bit if wide else limits.other)
        image.load()  # raises where the file is cut short
        # Read it after loading: loading already rotates some (TIFF) and then removes the tag.
        orientation = _orientation(image)
        if wide:
            return _rotate(_decode_png16(data), orientation)
        return _rotate(to_rgb(image), orientation)


def _open(data: bytes) -> Image.Image:
    if data[4:8] == b"ftyp" and data[8:11] != b"avi":
        if not HAS_HEIF:
            raise DecodeError("a HEIC file: install pillow-heif to read it")
        import pillow_heif  # takes 0.1 s

        pillow_heif.register_heif_opener()
        return Image.open(io.BytesIO(data), formats=["HEIF"])
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def to_rgb(image: Image.Image) -> np.ndarray:
    """[H, W, 3] uint8 of a Pillow picture of any mode; transparent parts become white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if image.mode.startswith("I;16"):  # Pillow would clip it
        grey = np.rint(np.asarray(image, np.float32) * (255 / 65535)).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DecodeError(f"pixels of mode {image.mode}, whose range is not known")
    return np.asarray(image.convert("RGB"))


def _decode_png16(data: bytes) -> np.ndarray:
    """[H, W, 3] uint8 of a 16-bit PNG, whose values Pillow clips (grey) or truncates (RGB)."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) / np.float32(65535)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:]
        pixels = pixels[:, :, :3] * alpha + (1 - alpha)
    return np.rint(pixels[:, :, ::-1] * 255).astype(np.uint8)


def _jpeg_header(jpeg: bytes) -> tuple[int, int, int, bool]:
    """(height, width, components, whether there is EXIF), from the segments before the pixels.

    Walks over the half dozen segments in 3 us. A codec's own header parser costs as much again, and
    releases the GIL, for which the thread then queues; Pillow takes half as long as decoding.

    Returns components=0 if the header is non-standard; the size is then unreliable.
    """
    height = width = components = 0
    has_exif = False
    at = 2
    with contextlib.suppress(IndexError):
        while (marker := jpeg[at + 1]) != 0xDA:  # start of scan
            if jpeg[at] != 0xFF or marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # these have no length
                return 0, 0, 0, False
            if marker == 0xFF:  # padding
                at += 1
                continue
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # frame header
                height = jpeg[at + 5] << 8 | jpeg[at + 6]
                width = jpeg[at + 7] << 8 | jpeg[at + 8]
                components = jpeg[at + 9]
            elif marker == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\0\0":
                has_exif = True
            at += 2 + (jpeg[at + 2] << 8 | jpeg[at + 3])
    return height, width, components, has_exif


def _upright(pixels: np.ndarray, data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return _rotate(pixels, _orientation(image))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 if there is none, or no EXIF that Pillow can parse."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, TypeError, ValueError, struct.error):  # the pixels are good all the same
        return 1


def _rotate(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation, 1 to 8; any other number counts as 1 (upright)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
