"""The demo set: portraits drawn by code, half of them with the face of somebody else swapped in.

Nothing is downloaded and nobody is depicted. A fake is made like a face swap: the facial region of
another person, in another light, is warped onto the landmarks of the target, matched in colour and
blended softly. The sign of a fake is that face (its skin, its light, its proportions), not the
editing: most real pictures get a sham swap, which warps their own face and blends it back, and both
classes go through the same camera: resampling, noise, JPEG.

    python -m input_pipeline.demo --sheet=FILE.png

draws a contact sheet.
"""

import dataclasses
import math
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile

import cv2
import numpy as np
import rich.console
import rich.progress

from input_pipeline import cache, cli, cores
from input_pipeline.cli import UserError
from input_pipeline.demo_set import people, portraits

VERSION = "demo-5"  # raise it whenever a pixel of the set changes: it names the cached folder
SEED = 0
SPLITS = {"Train": range(0, 1600), "Validation": range(1600, 1800), "Test": range(1800, 2000)}
# Otherwise glibc returns every array to the system, and a picture takes 18 ms instead of 12.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "268435456", "MALLOC_TRIM_THRESHOLD_": "268435456"}
CLASSES = ("Fake", "Real")
CAST_BLOCK = 200  # pictures that share one cast, so that no person is in two splits
CAST_SIZE = 100
SHAM_SHARE = 0.7  # of the real pictures


def draw(seed: int, index: int) -> tuple[np.ndarray, int]:
    """Draws picture `index` of the set `seed`; depends on these two numbers only.

    Returns:
      The picture, uint8 [128, 128, 3] RGB, and its label: 0 fake, 1 real.
    """
    jpeg, label = draw_jpeg(seed, index)
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], label


def draw_jpeg(seed: int, index: int) -> tuple[bytes, int]:
    """Like `draw`, but returns the JPEG file that `ensure_demo` writes."""
    label = index % 2
    rng = np.random.default_rng((seed, index))
    number, other = rng.choice(CAST_SIZE, 2, replace=False)
    person, shot = _member(seed, index, number), people.sample_shot(rng)
    target = portraits.render(person, shot, rng)
    image = target.image
    if label == 0:
        elsewhere = people.sample_shot(rng)
        x, y, z = elsewhere.light
        elsewhere = dataclasses.replace(elsewhere, light=(math.copysign(x, -shot.light[0]), y, z))
        image = _swap(portraits.render(_member(seed, index, other), elsewhere, rng), target, rng)
    elif rng.random() < SHAM_SHARE:
        image = _swap(target, target, rng)
    return _camera(image, rng), label


def _member(seed: int, index: int, number: int) -> people.Person:
    """Person `number` of the cast of this picture's block."""
    return people.sample_person(np.random.default_rng((seed, index // CAST_BLOCK, number, 1)))


def _swap(source: portraits.Portrait, target: portraits.Portrait, rng) -> np.ndarray:
    """The facial region of `source` in place of the target's: [128, 128, 3] float32."""
    # A landmark detector is off by about half a pixel. So a sham is resampled too, like a swap.
    found = source.landmarks + rng.normal(0, 0.6, source.landmarks.shape).astype(np.float32)
    warp = _affine(found, target.landmarks)
    size = (portraits.SIZE_PX, portraits.SIZE_PX)
    face = cv2.warpAffine(
        source.image, warp, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    inside = target.region > 0.5
    mean, deviation = face[inside].mean(0), face[inside].std(0)
    ratio = np.clip(target.image[inside].std(0) / deviation, 0.6, 1.6)
    face = (face - mean) * ratio + target.image[inside].mean(0)
    face = face * (1 + rng.uniform(-0.03, 0.03, 3).astype(np.float32))  # never a perfect match
    feather = float(rng.uniform(1.5, 3.0))
    alpha = cv2.GaussianBlur(target.region, (0, 0), feather)[..., None]
    return target.image + alpha * (face - target.image)


def _affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares affine map [2, 3] from points to points, both [N, 2]."""
    homogeneous = np.concatenate([source, np.ones_like(source[:, :1])], 1)
    return np.linalg.lstsq(homogeneous, target, rcond=None)[0].T


def _camera(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Lens, sensor and codec, the same for both classes: a JPEG file."""
    size = (portraits.SIZE_PX, portraits.SIZE_PX)
    resampled = round(portraits.SIZE_PX * rng.uniform(0.85, 1.2))
    image = cv2.resize(image, (resampled, resampled), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    shot_noise = rng.uniform(0.004, 0.02) * np.sqrt(np.clip(image, 0.02, 1))
    image = image + shot_noise * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 96))]
    return cv2.imencode(".jpg", pixels[..., ::-1], quality)[1].tobytes()


def ensure_demo() -> pathlib.Path:
    """The demo set as a folder `{Train,Validation,Test}/{Fake,Real}/*.jpg`; drawn if not there.

    It is in `$MNV4_CACHE`, or `~/.cache/mnv4_jax`. It is drawn in a temporary folder there, which
    is renamed at the end: an interrupted drawing cannot be mistaken for the set. If two processes
    draw at once, the first to finish wins.
    """
    folder = cache.root() / VERSION
    if folder.is_dir():
        return folder
    if why := cache.why_not_writable(folder.parent):
        raise UserError(
            f"the demo set cannot be drawn in {folder.parent} ({why}): set MNV4_CACHE to a folder"
            " that can be written to"
        )
    drawing = pathlib.Path(tempfile.mkdtemp(prefix=f".{VERSION}-", dir=folder.parent))
    try:
        _draw_all(drawing)
        drawing.chmod(0o755)  # mkdtemp's are private
        drawing.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(drawing, ignore_errors=True)
    return folder


def _draw_all(folder: pathlib.Path) -> None:
    """Draws every split into `folder`, with one process per core."""
    files = {}
    for split, indices in SPLITS.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        files |= {i: folder / split / CLASSES[i % 2] / f"{i:05d}.jpg" for i in indices}
    count = min(cores.available(), 16)
    workers = []
    try:
        # Plain child processes: multiprocessing would fork JAX's threads or import the caller's
        # main module again, JAX included, in each of them.
        for k in range(count):
            code = f"from input_pipeline import demo; demo._work({k}, {count}, {len(files)})"
            command = [sys.executable, "-c", code]
            # In a session of their own, so that Ctrl-C interrupts only the parent, which ends them.
            worker = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env=os.environ | KEEP_MEMORY,
            )
            workers.append(worker)
        console = rich.console.Console(stderr=True)  # standard output may carry JSON
        for number in rich.progress.track(
            range(len(files)),
            "Drawing the demo set",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            index, jpeg = pickle.load(workers[number % count].stdout)
            files[index].write_bytes(jpeg)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def _work(start: int, step: int, stop: int) -> None:
    """Runs in a child process: writes (index, JPEG) of every `step`-th picture to stdout."""
    cv2.setNumThreads(1)
    for index in range(start, stop, step):
        pickle.dump((index, draw_jpeg(SEED, index)[0]), sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _sheet() -> np.ndarray:
    """Four alternating rows of nine real and nine fake pictures, uint8 RGB."""
    lines = []
    for row in range(4):
        indices = [2 * (9 * (row // 2) + k) + 1 - row % 2 for k in range(9)]
        lines.append(np.concatenate([draw(SEED, index)[0] for index in indices], 1))
    return np.concatenate(lines, 0)


def main() -> None:
    parser = cli.ArgumentParser(prog="python -m input_pipeline.demo", description=__doc__)
    parser.add_argument("--sheet", required=True, metavar="FILE.png", help="contact sheet to draw")
    sheet = pathlib.Path(parser.parse_args().sheet)
    if not cv2.haveImageWriter(str(sheet)):
        raise cli.UserError(f"--sheet={sheet}: not a picture's name, FILE.png would be right")
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.write_bytes(cv2.imencode(sheet.suffix, _sheet()[..., ::-1])[1].tobytes())
    print(f"{sheet}: real pictures in the first row and every second one after it, fakes between")


if __name__ == "__main__":
    cli.run(main)
