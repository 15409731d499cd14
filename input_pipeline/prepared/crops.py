"""`prepare --faces`: cuts out the faces of a set, into a folder with the same layout."""

import io
import os
import pathlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import cv2
from PIL import Image

from input_pipeline.decode import DecodeError
from input_pipeline.faces import FaceFinder, largest
from input_pipeline.sources import CLASSES, Source

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
    """Writes OUT/<split>/<class>/<name>.jpg, the largest face of every picture of `sources`.

    Both classes are treated alike: a square of `faces.MARGIN` times the face, or the largest that
    fits; scaled to `SIDE_PX` by area; JPEG of quality 90 without metadata. Files are written
    atomically, and existing ones are not made again.

    Args:
      sources: by split.
      on_done: called after every picture.

    Returns:
      A line for each picture left out, with the reason; also written to OUT/no_face.txt.
    """
    finders = threading.local()

    def one(job) -> str | None:
        split, source, i = job
        name = pathlib.PurePosixPath(source.ids[i]).name
        if not name.lower().endswith((".jpg", ".jpeg")):
            name += ".jpg"
        file = out / split / CLASSES[source.labels[i]] / name
        try:
            if not file.exists():
                if not hasattr(finders, "find"):
                    finders.find = FaceFinder()  # one per thread: it keeps its last input
                face = largest(finders.find(source.read(i)))
                if face is None:
                    return f"{source.ids[i]}\tno face found"
                _save(file, face.pixels)
        except (DecodeError, OSError) as error:
            return f"{source.ids[i]}\t{error}"
        finally:
            on_done()
        return None

    jobs = [(split, source, i) for split, source in sources.items() for i in range(len(source))]
    for split, source in sources.items():
        for label in set(source.labels.tolist()):
            (out / split / CLASSES[label]).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(threads) as pool:
        left_out = [line for line in pool.map(one, jobs) if line]
    (out / NO_FACE).write_text("".join(f"{line}\n" for line in left_out))
    return left_out


def _save(file: pathlib.Path, pixels) -> None:
    how = cv2.INTER_AREA if pixels.shape[0] > SIDE_PX else cv2.INTER_CUBIC
    small = cv2.resize(pixels, (SIDE_PX, SIDE_PX), interpolation=how)
    data = io.BytesIO()
    Image.fromarray(small).save(data, "JPEG", quality=_QUALITY)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data.getvalue())
    os.replace(part, file)
