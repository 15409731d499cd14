"""Scores pictures: python -m mnv4_jax.predict --checkpoint=DIR photo.jpg FOLDER 'more/*.png' -

Prints one line per picture: p_fake, the answer, the file. A picture that is too small, or of one
colour, gets a reason instead of an answer. Searches folders and the folders in them; `-` reads a
list of files from standard input.
Exit status: 0 done, 1 some pictures were unreadable, 2 an error that the user can fix.

In a program: `from mnv4_jax.detector.detector import Detector`, then
`p_fake = Detector(checkpoint)(images)`.
"""

import argparse
import collections
import contextlib
import glob
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.progress
from PIL import Image

from input_pipeline import cli, listing
from input_pipeline.batches import OnBad
from input_pipeline.cli import UserError
from input_pipeline.decode import DecodeError, decode
from input_pipeline.faces import FaceFinder
from mnv4_jax.detector import thresholds
from mnv4_jax.detector.detector import Detector, Pictures
from mnv4_jax.detector.views import face_views
from mnv4_jax.runtime import memory

_AT_A_TIME, _FACES_AT_A_TIME = 256, 16  # pictures between two rounds of output
_ABSTAIN_RATE = "0.05"


class Item(NamedTuple):
    """One line of output: a file, or a face in it. `image` is scored; None: no face found."""

    file: str
    image: str | np.ndarray | None
    box: tuple[int, int, int, int] | None = None  # of the face: left, top, width, height in px


def main() -> int:
    args = parse(sys.argv[1:])
    passed_over = listing.PassedOver()
    files = find_pictures(args.pictures, passed_over)
    memory.keep_freed()
    detector = Detector(args.checkpoint, raw=args.raw)
    threshold = thresholds.choose(args.threshold, detector.thresholds)
    # The shipped detector was trained only on faces cut out of their photograph.
    find_faces = args.checkpoint is None if args.faces is None else args.faces
    clear_below = threshold
    if args.abstain:
        threshold, clear_below = abstention(detector)
    split = lambda file, _: [Item(file, file)]  # noqa: E731
    if find_faces:
        split = face_splitter(keep_crops=args.faces is None)
    if args.heatmap:
        _make_folder(args.heatmap)

    walked = any(map(os.path.isdir, args.pictures)) and files != args.pictures
    if walked or passed_over:  # not to standard output, which is for the answers
        counts = [f"{len(files):,} picture{'s' * (len(files) != 1)}"]
        print("; ".join(filter(None, [*counts, listing.describe(passed_over)])), file=sys.stderr)

    unreadable, heatmaps = [], {}

    def on_bad(file: str, reason: str) -> None:
        unreadable.append(file)
        print(cli.escaped(f"unreadable: {file}: {reason}"), file=sys.stderr)

    try:
        # A portrait's crop can be large, so keep fewer of them in memory.
        for chunk in _chunks(files, _FACES_AT_A_TIME if find_faces else _AT_A_TIME):
            items = [item for file in chunk for item in split(file, on_bad)]
            pictures = Pictures([item.image for item in items if item.image is not None])
            answers = iter(zip(*detector.score_or_say_why(pictures, on_bad), strict=True))
            scored = []
            for item in items:
                p_fake, reason = next(answers) if item.image is not None else (None, None)
                if p_fake is not None and not np.isfinite(p_fake):
                    if not reason:
                        continue  # unreadable, and reported already
                    p_fake = None
                line = _line(item, p_fake, reason, (clear_below, threshold), as_json=args.json)
                print(line, flush=True)
                if p_fake is not None:
                    scored.append(item)
            if args.heatmap:
                write_heatmaps(detector, scored, pathlib.Path(args.heatmap), heatmaps)
    except BrokenPipeError:  # `| head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if unreadable else 0


def parse(argv: Sequence[str]):
    parser = cli.ArgumentParser(
        prog="python -m mnv4_jax.predict", description=__doc__.split("\n", 2)[2]
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="a workdir, or one checkpoint in it; default: the detector in the box",
    )
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="file, folder, glob, or - for a list"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument(
        "--threshold",
        metavar="P",
        help=thresholds.HELP,
    )
    parser.add_argument(
        "--abstain",
        action="store_true",
        help="answer `unsure` between the threshold that 5%% of the photographs reach and the one"
        " that 5%% of the fakes stay below, both on Validation",
    )
    parser.add_argument("--raw", action="store_true", help="weights as trained, not averaged")
    parser.add_argument(
        "--heatmap",
        type=os.path.expanduser,
        metavar="DIR",
        help="also write each picture beside its explanation map",
    )
    parser.add_argument(
        "--faces",
        action=argparse.BooleanOptionalAction,
        help="find and crop faces first; a line a face (default with the detector in the box,"
        " unless a picture is a face's crop already)",
    )
    args = parser.parse_args(argv)
    if args.abstain and args.threshold:
        parser.error("--threshold: --abstain has two of its own; leave one of them out")
    args.threshold = args.threshold or "0.5"
    thresholds.check(parser, args.threshold)
    return args


def abstention(detector: Detector) -> tuple[float, float]:
    """(p_fake from which a picture is fake, p_fake below which it is real); the first is never
    lower than the second."""
    if not detector.clear_below:
        raise UserError("--abstain: the checkpoint has no calibration for it; train it anew")
    threshold = detector.thresholds[_ABSTAIN_RATE]
    return threshold, min(threshold, detector.clear_below[_ABSTAIN_RATE])


def find_pictures(
    arguments: Sequence[str], passed_over: listing.PassedOver | None = None
) -> list[str]:
    """The files that `arguments` mean, in order; the files of a folder are sorted.

    A named file is always included, whatever its name, even if it does not exist; so is a folder
    or glob without pictures: reading it will report the error. Raises UserError if that is the only
    argument, or if a list is empty. Counts files in folders that are not pictures in `passed_over`.
    """
    names = []
    for argument in arguments:
        if argument == "-":
            listed = os.fsdecode(getattr(sys.stdin, "buffer", sys.stdin).read())
            lines = listed.split("\0" if "\0" in listed else "\n")  # the former from find -print0
            names += [line.removesuffix("\r") for line in lines if line.strip()]
        elif os.path.exists(argument) or not glob.has_magic(argument):
            names.append(argument)
        else:
            found = sorted(glob.glob(argument, recursive=True))
            if "**" in argument:  # which also finds the files in those folders
                found = [name for name in found if os.path.isfile(name)]
            names += found or [argument]
    files = []
    passed_over = listing.PassedOver() if passed_over is None else passed_over
    for name in names:
        files += (os.path.isdir(name) and listing.pictures(name, passed_over)) or [name]
    alone = arguments[0] if len(arguments) == 1 and arguments[0] != "-" else None
    if not names or (alone and not any(os.path.exists(f) and not os.path.isdir(f) for f in files)):
        if alone and not glob.has_magic(alone):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.stat(alone)  # raises where it may not be seen
        raise UserError(
            f"{alone or 'standard input'}: no picture found; expected files, or folders with"
            f" *{', *'.join(listing.EXTENSIONS)}"
            f"{'; ' if passed_over else ''}{listing.describe(passed_over)}"
        )
    return files


def face_splitter(*, keep_crops: bool):
    """A function from (file, on_bad) to an `Item` for each face, or one `Item` without a face.

    `keep_crops`: see `views.face_views`.
    """
    finder = FaceFinder()

    def split(file: str, on_bad: OnBad) -> list[Item]:
        try:
            pixels = decode(pathlib.Path(file).read_bytes())
        except (DecodeError, OSError) as error:
            on_bad(file, str(error))
            return []
        views = face_views(pixels, finder, keep_crops=keep_crops)
        return [Item(file, view.pixels, view.box) for view in views] or [Item(file, None)]

    return split


def _line(
    item: Item,
    p_fake: float | None,
    reason: str | None,
    thresholds: tuple[float, float],
    *,
    as_json: bool,
) -> str:
    clear_below, threshold = thresholds
    label = None
    if p_fake is not None:
        label = "fake" if p_fake >= threshold else "real" if p_fake < clear_below else "unsure"
    if as_json:
        line = {"file": item.file, "p_fake": p_fake, "label": label}
        if reason:
            line["reason"] = reason
        if item.box or item.image is None:
            line["face"] = item.box
        return json.dumps(line)
    file = cli.escaped(item.file)
    if item.image is None:
        return f"-       none  {file}  (no face found)"
    where = "  (face at {},{}, {}×{} px)".format(*item.box) if item.box else ""
    if reason:
        return f"-       none  {file}{where}  ({reason})"
    return f"{p_fake:.4f}  {label}  {file}{where}"


def write_heatmaps(
    detector: Detector, items: Sequence[Item], folder: pathlib.Path, taken: dict[str, str]
) -> None:
    """FOLDER/<path with _ for />[.face<k>].png: the picture as the detector saw it, and its map.

    A name that is too long, or `taken` by another file (name: file; updated), ends in a number
    that depends on its path.
    """
    from mnv4_jax.detector import explain

    items = [item for item in items if item.image is not None]
    faces = collections.Counter()  # so far in each file
    pictures = Pictures([item.image for item in items])
    for i, picture, heat in explain.explain_source(detector, pictures):
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
    """Yields `files` in chunks; with a progress bar if the standard error is a terminal."""
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        console=rich.console.Console(stderr=True),
        disable=len(files) <= size or not sys.stderr.isatty(),
        redirect_stdout=sys.stdout.isatty(),  # otherwise the answers would go to the bar's output
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
