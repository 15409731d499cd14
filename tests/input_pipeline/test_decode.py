"""Every kind of picture becomes upright RGB, as Pillow and OpenCV have it, or an error."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from input_pipeline import decode as decode_lib
from input_pipeline.decode import DecodeError, Limits, decode
from tests.pictures import encoded, smooth

PIXELS = smooth(48, 64)


def _close(a, b, tolerance):
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    assert np.abs(a.astype(int) - b.astype(int)).max() <= tolerance


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpeg_as_opencv_decodes_it(options):
    data = encoded(PIXELS, **options)
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    _close(decode(data), theirs, tolerance=2)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_colour_spaces_become_rgb(mode, format):
    if mode == "CMYK" and format != "JPEG":
        pytest.skip("no such files")
    image = Image.fromarray(PIXELS).convert(mode)
    options = {"lossless": True} if format == "WEBP" else {}
    _close(decode(encoded(image, format, **options)), np.asarray(image.convert("RGB")), tolerance=8)


def test_palette_bilevel_and_gif():
    palette = Image.fromarray(PIXELS).quantize(16)
    for image, format in ((palette, "PNG"), (palette.convert("1"), "PNG"), (palette, "GIF")):
        _close(decode(encoded(image, format)), np.asarray(image.convert("RGB")), tolerance=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled_not_cut(channels):
    deep = np.linspace(0, 65535, 40 * 30 * channels).reshape(40, 30, channels).astype(np.uint16)
    data = cv2.imencode(".png", deep)[1].tobytes()
    expected = deep / 65535
    if channels == 4:
        expected = expected[:, :, :3] * expected[:, :, 3:] + 1 - expected[:, :, 3:]
    expected = np.broadcast_to(expected[:, :, ::-1], (40, 30, 3))
    _close(decode(data), np.rint(255 * expected).astype(np.uint8), tolerance=0)


@pytest.mark.parametrize("format", ["TIFF", "GIF", "MPO", "AVIF"])
def test_of_several_pages_or_frames_the_first_is_taken(format):
    if format == "AVIF" and not decode_lib.HAS_AVIF:
        pytest.skip("this Pillow reads no AVIF")
    first, second = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    tolerance = {"TIFF": 0, "MPO": 24, "AVIF": 24, "GIF": 60}[format]
    data = encoded(first, format, save_all=True, append_images=[second])
    _close(decode(data), PIXELS, tolerance)


def test_tiff_of_sixteen_bits_is_scaled_and_of_floats_refused():
    deep = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
    expected = np.rint(deep / 257).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    _close(decode(encoded(Image.fromarray(deep), "TIFF")), expected, tolerance=0)
    with pytest.raises(DecodeError, match="mode F, whose range is not known"):
        decode(encoded(Image.fromarray(deep.astype(np.float32)), "TIFF"))


def test_heic_is_read_where_its_package_is():
    data = bytes.fromhex("0000001c6674797068656963") + bytes(40)
    if not decode_lib.HAS_HEIF:
        with pytest.raises(DecodeError, match="install pillow-heif"):
            decode(data)
        return
    import pillow_heif

    pillow_heif.register_heif_opener()
    _close(decode(encoded(Image.fromarray(PIXELS), "HEIF", quality=95)), PIXELS, tolerance=24)
    with pytest.raises(DecodeError):
        decode(data)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_is_laid_over_white(format):
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, 32:] = 255
    alpha[:8] = 128
    rgba = Image.fromarray(np.dstack([PIXELS, alpha]))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = decode(encoded(rgba, format, **options))
    share = alpha[:, :, None] / 255
    _close(pixels, np.rint(PIXELS * share + 255 * (1 - share)).astype(np.uint8), tolerance=1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_exif_rotation_as_pillow_does_it(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIXELS, format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    _close(decode(data), upright, tolerance=2)


@pytest.mark.parametrize("exif", [b"garbage!", b"Exif\0\0garbage!", b"II*\0"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_parsed_counts_as_none(format, exif):
    """Without `dpi`, Pillow itself looks at a JPEG's EXIF when it opens the file."""
    options = {"lossless": True} if format == "WEBP" else {"dpi": (72, 72)}
    _close(decode(encoded(PIXELS, format, exif=exif, **options)), PIXELS, tolerance=8)


@pytest.mark.parametrize("key", ["Raw profile type exif", "exif"])
def test_exif_as_text_in_a_png_counts_as_none(key):
    text = PngImagePlugin.PngInfo()
    text.add_text(key, "\nexif\n8\nnot hexadecimal")
    _close(decode(encoded(PIXELS, "PNG", pnginfo=text)), PIXELS, tolerance=0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.95])
def test_a_file_cut_short_is_an_error(format, kept):
    data = encoded(PIXELS if format != "GIF" else Image.fromarray(PIXELS).quantize(64), format)
    with pytest.raises(DecodeError):
        decode(data[: int(len(data) * kept)])


def test_bytes_between_the_segments_of_a_jpeg_are_pillows_to_skip():
    data = encoded(PIXELS)
    tables = data.index(b"\xff\xdb")
    odd = data[:tables] + b"\0\0\0" + data[tables:]
    with Image.open(io.BytesIO(odd)) as image:
        _close(decode(odd), np.asarray(image), tolerance=0)


def test_a_size_that_another_decoder_would_not_find_is_not_believed():
    """After a marker without length, libjpeg reads on at once: a length there is a trap."""
    data = encoded(smooth(400, 400))
    small = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03" + bytes(9)
    trap = b"\xff\xd0\xff\xe2" + (2 + len(small)).to_bytes(2, "big") + small
    with pytest.raises(DecodeError, match="400×400 px are more"):
        decode(data[:2] + trap + data[2:], Limits(other=10_000))  # by Pillow


def test_padding_before_a_marker_is_skipped():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PIXELS, exif=exif)
    tables = data.index(b"\xff\xdb")
    _close(decode(data[:tables] + b"\xff\xff" + data[tables:]), decode(data), tolerance=0)


def test_a_jpeg_with_a_hole_is_an_error():
    data = bytearray(encoded(smooth(200, 200), quality=90))
    middle = len(data) // 2
    data[middle : middle + len(data) // 4] = bytes(len(data) // 4)
    with pytest.raises(DecodeError):
        decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF8", b"not a picture", bytes(5000)])
def test_what_is_no_picture_is_an_error(data):
    with pytest.raises(DecodeError) as error:
        decode(data)
    assert str(error.value)


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        (Limits(jpeg=48 * 64 - 1), encoded(PIXELS)),
        (Limits(other=48 * 64 - 1), encoded(PIXELS, "PNG")),
        (
            Limits(png_16_bit=48 * 64 - 1),
            cv2.imencode(".png", PIXELS.astype(np.uint16))[1].tobytes(),
        ),
    ],
    ids=["jpeg", "other", "16 bits"],
)
def test_a_huge_picture_is_refused_by_its_header(limits, data):
    with pytest.raises(DecodeError, match=r"64×48 px are more than the 3,071 pixels allowed"):
        decode(data, limits)
    decode(data)
