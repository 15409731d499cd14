"""`prepare --faces`: cuts out the faces of a set, into a folder with the same layout."""

import io
import os
import pathlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import cv2
from PIL import Image

from input_pipeline.cli import printable
from input_pipeline.decode import DecodeError
from input_pipeline.faces import FaceFinder, largest
from input_pipeline.sources import CLASSES, Source, in_class

SIDE_PX = 160
_QUALITY = 90
NO_FACE = "no_face.txt"


def write(
    out: pathlib.Path,
    sources: Mapping[str, Source],
    *,
    threads: int,
    on_done: Callable[[], None],
) -> list[str]:
    """Writes OUT/<split>/<class>/<name>.jpg, the largest face of every picture of `sources`. A name
    keeps the folders that it has below its class.

    Both classes are treated alike: a square of `faces.MARGIN` times the face, or the largest that
    fits; scaled to `SIDE_PX` by area; JPEG of quality 90 without metadata. Files are written
    atomically, and existing ones are not made again.

    Args:
      sources: by split.
      on_done: called after every picture.

    Returns:
      A line for each picture left out, with the reason; also written to OUT/no_face.txt.
    """
    out.mkdir(parents=True, exist_ok=True)
    finders = threading.local()

    def one(job) -> str | None:
        split, source, i = job
        name = in_class(source.ids[i]).partition("/")[2]
        if not name.lower().endswith((".jpg", ".jpeg")):
            name += ".jpg"
        file = out / split / CLASSES[source.labels[i]] / name
        try:
            if file.exists():
                return None
            if not hasattr(finders, "find"):
                finders.find = FaceFinder()  # one per thread: it keeps its last input
            try:
                pixels = source.read(i)
            except (DecodeError, OSError) as error:
                return f"{printable(source.ids[i])}\t{error}"
            face = largest(finders.find(pixels))
            if face is None:
                return f"{printable(source.ids[i])}\tno face found"
            _save(file, face.pixels)
        finally:
            on_done()
        return None

    jobs = [(split, source, i) for split, source in sources.items() for i in range(len(source))]
    with ThreadPoolExecutor(threads) as pool:
        left_out = [line for line in pool.map(one, jobs) if line]
    (out / NO_FACE).write_text("".join(f"{line}\n" for line in left_out))
    return left_out


def _save(file: pathlib.Path, pixels) -> None:
    how = cv2.INTER_AREA if pixels.shape[0] > SIDE_PX else cv2.INTER_CUBIC
    small = cv2.resize(pixels, (SIDE_PX, SIDE_PX), interpolation=how)
    data = io.BytesIO()
    Image.fromarray(small).save(data, "JPEG", quality=_QUALITY)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data.getvalue())
    os.replace(part, file)
