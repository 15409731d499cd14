"""Which files of a folder are pictures, and which are passed over.

Decides by their names, so that 190,000 files take half a second. Decoding later shows what a file
really contains.
"""

import collections
import contextlib
import os
from collections.abc import Iterator, Mapping

from input_pipeline import decode

# Formats that Pillow and simplejpeg can read in this installation.
EXTENSIONS = (
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".jfif", ".jpe", ".mpo", ".tif", ".tiff")
    + ((".avif",) if decode.HAS_AVIF else ())
    + ((".heic", ".heif", ".hif") if decode.HAS_HEIF else ())
)
_CURES = {
    ".avif": "install pillow 11.3 or later",
    **dict.fromkeys((".heic", ".heif", ".hif"), "install pillow-heif"),
}
# First bytes of these formats, for file names without an extension.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")

PassedOver = collections.Counter  # of files, by ending


def is_picture(name: str) -> bool:
    """Whether a file of this name counts as a picture."""
    # "._photo.jpg" is what macOS leaves beside "photo.jpg" in an archive.
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def pictures(folder: str, passed_over: PassedOver) -> list[str]:
    """The paths of the pictures in `folder` and in the folders below it, sorted.

    Ignores hidden files and folders. Counts any other file that is not a picture in `passed_over`.

    Raises:
        OSError: a folder cannot be listed.
    """
    return sorted(_walk(folder, passed_over, [os.path.realpath(folder)]))


def _walk(folder: str, passed_over: PassedOver, above: list[str]) -> Iterator[str]:
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_picture(name) and entry.is_file():
                yield entry.path
            elif name.startswith(".") or name == "__MACOSX":
                continue
            elif entry.is_dir():
                below.append(entry.path)
            elif "." not in name and entry.is_file() and _begins_like_a_picture(entry.path):
                yield entry.path
            else:
                passed_over[os.path.splitext(name)[1].lower()] += 1
    for path in below:
        real = os.path.realpath(path)
        if real not in above:  # a link to a parent folder would never end
            yield from _walk(path, passed_over, [*above, real])


def _begins_like_a_picture(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(16)
        webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
        return webp or start.startswith(_SIGNATURES)
    return False


def describe(passed_over: Mapping[str, int]) -> str:
    """ "12 files passed over: 9 .heic (install pillow-heif), 3 .txt", or "" if there are none."""
    n = sum(passed_over.values())
    if not n:
        return ""
    parts = [
        f"{count:,} {ending or 'without an ending'}"
        + (f" ({_CURES[ending]})" if ending in _CURES else "")
        for ending, count in sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    ]
    return f"{n:,} file{'s' * (n > 1)} passed over: {', '.join(parts)}"
