"""Asks a detector: python -m mnv4_jax.predict --checkpoint=DIR photo.jpg FOLDER 'more/*.png' -

A line a picture: p_fake, the answer, the file. Folders are walked; `-` reads a list of files from
standard input. Exit status: 0 done, 1 some pictures were unreadable, 2 something to put right.

In a program: `from mnv4_jax.predict import Detector; p_fake = Detector(checkpoint)(images)`.
"""

import collections
import glob
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import rich.console
import rich.progress
from PIL import Image

from input_pipeline import cli, sources
from input_pipeline.batches import OnBad
from input_pipeline.cli import UserError
from input_pipeline.decode import DecodeError, decode
from mnv4_jax import calibration, checkpoint, compilation_cache, host_memory, scoring, sharding

_AT_A_TIME, _FACES_AT_A_TIME = 256, 16  # pictures between two rounds of output


class Detector:
    """A trained detector, ready for pictures.

    Args:
      path: a workdir, a checkpoints folder or one step's folder.
      raw: the weights as trained instead of their moving average.

    Raises:
      UserError: there is no intact checkpoint.
    """

    def __init__(self, path: str | os.PathLike, *, raw: bool = False):
        compilation_cache.enable()
        loaded = checkpoint.load(path, raw=raw)
        self.model = loaded.model
        self.data_config = scoring.evaluation_config(loaded.config.data)
        fitted = loaded.calibration or {}
        self.temperature: float = fitted.get("temperature", 1.0)
        self.thresholds: dict[str, float] = fitted.get("thresholds", {})  # by false-alarm rate
        self._mesh = sharding.make_mesh()

    def __call__(self, images: Sequence) -> np.ndarray:
        """Calibrated probabilities that pictures are fake.

        Args:
          images: N paths, encoded files (bytes) or arrays [H, W, 3] uint8 RGB; of any sizes.

        Returns:
          [N] float64, p_fake.

        Raises:
          ValueError: naming the first picture that cannot be read.
        """
        bad = []
        p_fake = self.score(Pictures(images), on_bad=lambda *why: bad.append(": ".join(why)))
        if bad:
            raise ValueError(f"unreadable picture {bad[0]}")
        return p_fake

    def score(self, source: sources.Source, on_bad: OnBad | None = None) -> np.ndarray:
        """[N] float64 p_fake of a source; nan where a picture cannot be read: `on_bad` is told."""
        scores = scoring.score_source(
            self.model, source, self.data_config, self._mesh, on_bad=on_bad
        )
        p_fake = np.full(len(source), np.nan)
        p_fake[scores.index] = calibration.p_fake(scores.logits, self.temperature)
        return p_fake


class Pictures:
    """A source of paths, encoded files (bytes) and arrays [H, W, 3] uint8 RGB, in any mixture."""

    groups = None

    def __init__(self, images: Iterable):
        self._images = images = list(images)
        self.labels = np.full(len(images), -1, np.int32)
        self.ids = [
            os.fspath(image) if isinstance(image, str | os.PathLike) else f"number {i}"
            for i, image in enumerate(images)
        ]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> bytes:
        image = self._images[i]
        if isinstance(image, bytes | bytearray | memoryview):
            return bytes(image)
        if isinstance(image, str | os.PathLike):
            if os.path.isdir(image):
                raise OSError("no picture in this folder")
            return pathlib.Path(image).read_bytes()
        image = np.asarray(image)  # of NumPy, JAX, Pillow
        if not image.size or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise OSError(f"{image.dtype} {image.shape} is not uint8 [H, W, 3]")
        return cv2.imencode(".bmp", image[..., ::-1])[1].tobytes()  # without loss, and quick


class Item(NamedTuple):
    """One line to come: a file, or a face in it. `image` is what to score; None: no face found."""

    file: str
    image: str | np.ndarray | None
    box: tuple[int, int, int, int] | None = None  # of the face: left, top, width, height in px


def main() -> int:
    args = parse(sys.argv[1:])
    files = find_pictures(args.pictures)
    host_memory.keep_freed()
    detector = Detector(args.checkpoint, raw=args.raw)
    threshold = choose_threshold(args.threshold, detector.thresholds)
    split = face_splitter() if args.faces else lambda file, _: [Item(file, file)]
    if args.heatmap:
        _make_folder(args.heatmap)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # file names need not be UTF-8

    unreadable, heatmaps = [], {}

    def on_bad(file: str, reason: str) -> None:
        unreadable.append(file)
        print(f"unreadable: {file}: {reason}", file=sys.stderr)

    try:
        # A portrait's crop can be large: fewer of them wait for their scores.
        for chunk in _chunks(files, _FACES_AT_A_TIME if args.faces else _AT_A_TIME):
            items = [item for file in chunk for item in split(file, on_bad)]
            pictures = Pictures([item.image for item in items if item.image is not None])
            answers = iter(detector.score(pictures, on_bad))
            for item in items:
                p_fake = next(answers) if item.image is not None else None
                if p_fake is None or np.isfinite(p_fake):
                    print(_line(item, p_fake, threshold, as_json=args.json), flush=True)
            if args.heatmap:
                write_heatmaps(detector, items, pathlib.Path(args.heatmap), heatmaps)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if unreadable else 0


def parse(argv: Sequence[str]):
    parser = cli.ArgumentParser(
        prog="python -m mnv4_jax.predict", description=__doc__.split("\n", 2)[2]
    )
    parser.add_argument("--checkpoint", required=True, help="a workdir, or one checkpoint in it")
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="file, folder, glob, or - for a list"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument(
        "--threshold",
        default="0.5",
        metavar="P",
        help="p_fake from which a picture is called fake (0.5), or a false-alarm rate that the"
        " checkpoint has a threshold for, as 5%%",
    )
    parser.add_argument("--raw", action="store_true", help="weights as trained, not averaged")
    parser.add_argument(
        "--heatmap", metavar="DIR", help="also write each picture beside its explanation map"
    )
    parser.add_argument(
        "--faces", action="store_true", help="find and crop faces first; a line a face"
    )
    args = parser.parse_args(argv)
    number = args.threshold.removesuffix("%")
    try:
        valid = 0 <= float(number) <= (100 if number != args.threshold else 1)
    except ValueError:
        valid = False
    if not valid:
        parser.error(f"--threshold={args.threshold}: must be from 0 to 1, or a rate like 5%")
    return args


def choose_threshold(given: str, thresholds: dict[str, float]) -> float:
    """`given` as a number, or what `thresholds` has for the false-alarm rate it names, as "5%"."""
    if not given.endswith("%"):
        return float(given)
    rate = f"{float(given[:-1]) / 100:g}"
    if rate not in thresholds:
        known = "none (trained without Validation, or --raw)"
        if thresholds:
            known = f"thresholds for {', '.join(f'{100 * float(r):g}%' for r in thresholds)}"
        raise UserError(
            f"--threshold={given}: the checkpoint has {known}; or give a number from 0 to 1"
        )
    return thresholds[rate]


def find_pictures(arguments: Sequence[str]) -> list[str]:
    """The files that `arguments` mean, in order; what is found in a folder is sorted.

    A file that is named is taken whatever it is called, if it exists or not, and so is a folder
    or glob that holds nothing: reading will tell. Raises UserError where that is the only argument,
    or a list is empty.
    """
    names = []
    for argument in arguments:
        if argument == "-":
            listed = os.fsdecode(getattr(sys.stdin, "buffer", sys.stdin).read())
            lines = listed.split("\0" if "\0" in listed else "\n")  # find -print0 has the former
            names += [line.removesuffix("\r") for line in lines if line.strip()]
        elif os.path.exists(argument) or not glob.has_magic(argument):
            names.append(argument)
        else:
            found = sorted(glob.glob(argument, recursive=True))
            if "**" in argument:  # which finds what is in the folders as well
                found = [name for name in found if os.path.isfile(name)]
            names += found or [argument]
    files = []
    for name in names:
        files += list(_walk(name)) or [name]
    alone = arguments[0] if len(arguments) == 1 and arguments[0] != "-" else None
    if not names or (alone and not any(os.path.exists(f) and not os.path.isdir(f) for f in files)):
        raise UserError(
            f"{alone or 'standard input'}: no picture found; expected files, or folders with"
            f" *{', *'.join(sources.EXTENSIONS)}"
        )
    return files


def _walk(folder: str) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if sources.is_picture(name):
                yield os.path.join(root, name)


def face_splitter():
    """A function from (file, on_bad) to an `Item` for each face, or one that says there is none."""
    from mnv4_jax.faces import FaceFinder  # an extra

    finder = FaceFinder()

    def split(file: str, on_bad: OnBad) -> list[Item]:
        try:
            pixels = decode(pathlib.Path(file).read_bytes())
        except (DecodeError, OSError) as error:
            on_bad(file, str(error))
            return []
        faces = finder(pixels)
        return [Item(file, face.pixels, face.box) for face in faces] or [Item(file, None)]

    return split


def _line(item: Item, p_fake: float | None, threshold: float, *, as_json: bool) -> str:
    label = None if p_fake is None else "fake" if p_fake >= threshold else "real"
    if as_json:
        line = {"file": item.file, "p_fake": p_fake, "label": label}
        if item.box or p_fake is None:
            line["face"] = item.box
        return json.dumps(line)
    if p_fake is None:
        return f"-       none  {item.file}  (no face found)"
    where = "  (face at {},{}, {}×{} px)".format(*item.box) if item.box else ""
    return f"{p_fake:.4f}  {label}  {item.file}{where}"


def write_heatmaps(
    detector: Detector, items: Sequence[Item], folder: pathlib.Path, taken: dict[str, str]
) -> None:
    """FOLDER/<path with _ for />[.face<k>].png: the picture as the detector saw it, and its map.

    A name that is too long, or `taken` by another file (name: file; added to), ends in a number of
    its path's own.
    """
    from mnv4_jax import explain

    items = [item for item in items if item.image is not None]
    faces = collections.Counter()  # so far in each file
    pictures = Pictures([item.image for item in items])
    for i, picture, heat in explain.explain_source(detector.model, pictures, detector.data_config):
        item = items[i]
        name = item.file.replace(os.sep, "_").lstrip("._")
        short = name.encode(errors="surrogateescape")[:200].decode(errors="ignore")
        if taken.setdefault(name, item.file) != item.file or short != name:
            name = f"{short}.{zlib.crc32(os.fsencode(item.file)):08x}"
        if item.box:
            faces[item.file] += 1
            name += f".face{faces[item.file]}"
        pair = np.concatenate([picture, explain.overlay(picture, heat)], axis=1)
        Image.fromarray(pair).save(folder / f"{name}.png")


def _chunks(files: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """`files` in turns; with a progress bar if the standard error is a terminal."""
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        console=rich.console.Console(stderr=True),
        disable=len(files) <= size or not sys.stderr.isatty(),
        redirect_stdout=sys.stdout.isatty(),  # else the answers would go where the bar goes
    ) as progress:
        task = progress.add_task("pictures", total=len(files))
        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            yield chunk
            progress.advance(task, len(chunk))


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"--heatmap={folder}: is a file, or lies below one; name a folder"
        ) from None


if __name__ == "__main__":
    cli.run(main)
