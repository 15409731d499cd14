"""Makes a TFDS ArrayRecord set from an image folder, and lists its duplicate pictures.

    python -m input_pipeline.prepare --source=FOLDER --out=DIR [--drop_leaks]
    python -m input_pipeline.prepare --source=kaggle --out=DIR [--drop_leaks]
    python -m input_pipeline.prepare --source=FOLDER --out=DIR --faces

The files keep their bytes. DIR/leaks.md is the report to read, DIR/leaks.json has all details.
To train on the set, use --config.data.dir=DIR. With --faces, DIR becomes an image folder of the
faces alone, all cut out in the same way; after a stop, run it again to resume. With --ray,
processes of Ray do the work (pip install -e '.[ray]'): the same set and the same report.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from input_pipeline import cores, engine, mixtures
from input_pipeline.cli import ArgumentParser, UserError, printable, run
from input_pipeline.prepared import builder, crops, distributed, leak_report, leaks
from input_pipeline.sources import (
    LAYOUT,
    SPLITS,
    FileSource,
    Source,
    describe,
    has_split,
    open_source,
)

_HERE = "this machine"  # --ray without an address
KAGGLE_SET = "manjilkarki/deepfake-and-real-images"


def main() -> int | None:
    flags = _flags()
    out = pathlib.Path(flags.out)
    if flags.faces:
        return _cut_out_faces(flags, out)
    origin = flags.source if flags.source == "kaggle" else os.path.realpath(flags.source)
    finished = out / builder.NAME / builder.VERSION
    facts = {"source": origin, "drop_leaks": flags.drop_leaks}
    if (finished / "dataset_info.json").exists():
        return _already_there(finished, facts)

    folder = _kaggle_folder() if flags.source == "kaggle" else flags.source
    sources = _open(folder)
    for split, source in sources.items():
        print(f"{split}: {describe(source)}", flush=True)
    _check_out(out, folder)

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with contextlib.ExitStack() as stack:
        ray = None
        if flags.ray is not None:
            ray = stack.enter_context(engine.running(None if flags.ray == _HERE else flags.ray))
        stack.enter_context(progress)
        found = _look(ray, sources, flags.threads, out, progress)
        pictures = [
            leak_report.Picture(
                source.ids[i],
                split,
                int(source.labels[i]),
                source.groups[i] if source.groups else None,
            )
            for split, source in sources.items()
            for i in found.readable[split]
        ]
        report = leak_report.report(
            pictures, found.duplicates, unreadable=found.unreadable, dropped=flags.drop_leaks
        )
        dropped = set(report["dropped"])
        splits = {}
        for split, source in sources.items():
            kept = [k for k, i in enumerate(found.readable[split]) if source.ids[i] not in dropped]
            keep, sizes, records = (
                [int(of[split][k]) for k in kept]
                for of in (found.readable, found.n_bytes, found.record_bytes)
            )
            splits[split] = builder.Split(source, keep, sum(sizes), sum(records))
        _check_space(out, sum(split.n_bytes for split in splits.values()))
        _write_text(out / "leaks.json", json.dumps(report, indent=1))
        _write_text(out / "leaks.md", leak_report.page(report))

        writing = progress.add_task("writing", total=sum(len(s.keep) for s in splits.values()))
        _write_set(ray, out, splits, facts, lambda n=1: progress.advance(writing, n))
    _say_result(out, report, splits)
    return None


class _Found(NamedTuple):
    """The readable pictures of each split, in order: positions in its source, bytes of their files
    and, with --ray, bytes of their records (otherwise 0)."""

    readable: dict[str, Sequence[int]]
    n_bytes: dict[str, Sequence[int]]
    record_bytes: dict[str, Sequence[int]]
    duplicates: leaks.Duplicates
    unreadable: Sequence[tuple[str, str]]


def _look(ray, sources: dict, threads: int, out: pathlib.Path, progress: Progress) -> _Found:
    """Reads every picture and compares them all, in this process or by Ray."""
    if ray:
        reading = progress.add_task("reading", total=sum(len(s) for s in sources.values()))
        try:
            scan = distributed.scan(ray, sources, out, lambda n: progress.advance(reading, n))
            _check_any_readable(sources, scan.readable)
            comparing = progress.add_task("comparing", total=None)
            duplicates = distributed.find_duplicates(ray, scan)
        finally:
            shutil.rmtree(out / distributed.SCRATCH, ignore_errors=True)
        found = _Found(scan.readable, scan.n_bytes, scan.record_bytes, duplicates, scan.unreadable)
    else:
        scans, unreadable = _scan(sources, threads, progress)
        comparing = progress.add_task("comparing", total=None)
        prints = [mark for scan in scans.values() for _, mark in scan.values()]
        found = _Found(
            {split: list(scan) for split, scan in scans.items()},
            {split: [size for size, _ in scan.values()] for split, scan in scans.items()},
            {split: [0] * len(scan) for split, scan in scans.items()},
            leaks.find_duplicates(prints),
            unreadable,
        )
    progress.update(comparing, total=1, completed=1)
    return found


def _check_any_readable(sources: dict, readable: Mapping[str, Sequence[int]]) -> None:
    for split, source in sources.items():
        if not len(readable[split]):
            raise UserError(f"{split}: none of its {len(source)} pictures can be read")


def _cut_out_faces(flags: argparse.Namespace, out: pathlib.Path) -> None:
    folder = _kaggle_folder() if flags.source == "kaggle" else flags.source
    sources = _open(folder, one_class=True)
    if os.path.realpath(out) == os.path.realpath(folder):
        raise UserError(f"--out={out} is the source itself; name another folder")
    total = sum(map(len, sources.values()))
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as progress:
        task = progress.add_task("faces", total=total)
        left_out = crops.write(
            out, sources, threads=flags.threads, on_done=lambda: progress.advance(task)
        )
    if len(left_out) == total:
        raise UserError(
            f"--source={flags.source}: none of its {total} pictures gave a face:"
            f" {out / crops.NO_FACE} says why for each"
        )
    print(f"{total - len(left_out)} faces of {total} pictures in {out}")
    if left_out:
        print(f"{len(left_out)} left out, named in {out / crops.NO_FACE}")


def _flags() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m input_pipeline.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    folder = {"required": True, "type": os.path.expanduser}  # a shell does not, after --out=
    parser.add_argument("--source", help=f"a folder {LAYOUT}, or: kaggle", **folder)
    parser.add_argument("--out", help="the folder to write", **folder)
    parser.add_argument(
        "--drop_leaks",
        action="store_true",
        help="leave out the Train pictures that have a copy in Validation or Test",
    )
    parser.add_argument(
        "--faces", action="store_true", help="write a folder of the pictures' largest faces"
    )
    parser.add_argument("--threads", type=int, default=cores.available(), help="default: cores")
    parser.add_argument(
        "--ray",
        nargs="?",
        const=_HERE,
        metavar="HOST:PORT",
        help="by Ray, on this machine or on a cluster: for sets that one process cannot hold",
    )
    flags = parser.parse_args()
    if flags.ray and flags.faces:
        parser.error("--ray: --faces runs in one process; leave one of them out")
    if flags.drop_leaks and flags.faces:
        parser.error("--drop_leaks: not with --faces, which writes no report of copies")
    if flags.threads < 1:
        parser.error(f"--threads={flags.threads}: expected 1 or more")
    return flags


def _already_there(finished: pathlib.Path, facts: dict) -> None:
    """Keeps a finished set; raises UserError if it has another source or option."""
    try:
        there = json.loads((finished / "metadata.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{finished} holds a set without metadata.json: delete it first") from error
    for flag, wanted in facts.items():
        if there.get(flag) != wanted:
            raise UserError(
                f"{finished} was made with {flag}={there.get(flag)}, not {wanted}: "
                "delete it or name another --out"
            )
    counts = {name.capitalize(): len(split["ids"]) for name, split in there["splits"].items()}
    print(f"{finished} is finished already: {_counts(counts)}. To make it again, delete it first.")


def _kaggle_folder() -> str:
    """Downloads the Kaggle set, or finds it in kagglehub's cache ($KAGGLEHUB_CACHE)."""
    try:
        import kagglehub
    except ImportError as error:
        raise UserError(
            "--source=kaggle needs the package kagglehub: pip install -e '.[kaggle]'"
        ) from error
    try:
        return kagglehub.dataset_download(KAGGLE_SET)
    except Exception as error:  # no network, no disk, refused by Kaggle: different classes
        raise UserError(
            f"Kaggle's {KAGGLE_SET} could not be downloaded: {error} (it can be unpacked by hand: "
            "--source=FOLDER)"
        ) from error


def _open(folder: str, *, one_class: bool = False) -> dict[str, FileSource]:
    if not folder:
        raise UserError("--source is empty: expected a folder, or: kaggle")
    if mixtures.is_mixture(folder):
        raise UserError(f"--source={folder}: several sets; prepare one at a time")
    names = [split for split in SPLITS if has_split(folder, split)]
    if not names:
        raise UserError(f"--source={folder}: no split found; expected {LAYOUT}")
    sources = {name: open_source(folder, name, one_class=one_class) for name in names}
    if not all(isinstance(source, FileSource) for source in sources.values()):
        raise UserError(f"--source={folder} is a prepared set already; expected {LAYOUT}")
    return sources


def _check_out(out: pathlib.Path, folder: str) -> None:
    # pathlib's `resolve` raises RuntimeError for a link to itself.
    inside, real_out = (pathlib.Path(os.path.realpath(path)) for path in (folder, out))
    if inside in (real_out, *real_out.parents):
        raise UserError(f"--out={out} lies inside the source {folder}: name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # TFDS removes these folders itself unless it was killed.
        for left_over in (out / builder.NAME).glob("incomplete.*"):
            shutil.rmtree(left_over)
        probe = out / "leaks.md.draft"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error


def _check_space(out: pathlib.Path, n_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if n_bytes * 1.02 > free:  # records add 200 bytes to a picture
        raise UserError(
            f"--out={out}: the set needs {n_bytes / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are "
            "free: make room or name another folder"
        )


# {position in the source: (bytes of the file, its fingerprint)}, of the readable pictures
Scan = dict[int, tuple[int, leaks.Fingerprint]]


def _scan(
    sources: dict[str, Source], threads: int, progress: Progress
) -> tuple[dict[str, Scan], list[tuple[str, str]]]:
    """Fingerprints by split, and (id, reason) of every unreadable file."""

    def look(source: Source, i: int) -> tuple[int, leaks.Fingerprint] | str:
        found = leaks.examine(source, i)
        return found if isinstance(found, str) else (len(found[0]), found[1])

    scans, unreadable = {}, []
    reading = progress.add_task("reading", total=sum(len(s) for s in sources.values()))
    pool = ThreadPoolExecutor(threads)
    try:
        for split, source in sources.items():
            scans[split] = {}
            for i, found in enumerate(pool.map(lambda i, s=source: look(s, i), range(len(source)))):
                if isinstance(found, str):
                    unreadable.append((printable(source.ids[i]), found))
                else:
                    scans[split][i] = found
                progress.advance(reading)
            _check_any_readable({split: source}, scans)
    finally:
        pool.shutdown(cancel_futures=True)
    return scans, unreadable


def _write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file atomically."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _write_set(
    ray: ModuleType | None,
    out: pathlib.Path,
    splits: dict[str, builder.Split],
    facts: dict,
    on_written: Callable[..., None],
) -> None:
    writer = builder.DeepfakeFaces(
        data_dir=os.fspath(out),
        splits=splits,
        facts=facts,
        on_written=on_written,
        write_shards=distributed.write_shards(ray, on_written) if ray else None,
    )
    try:
        writer.write()
    except UserError:
        raise
    except Exception as error:
        # ArrayRecord reports a full disk only in the text of its errors.
        if shutil.disk_usage(out).free < 2**20 or "No space left" in str(error):
            raise UserError(
                f"--out={out}: the disk is full: make room, then run it again"
            ) from error
        raise


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _say_result(out: pathlib.Path, report: dict, splits: dict[str, builder.Split]) -> None:
    print(f"written: {_counts({name: len(split.keep) for name, split in splits.items()})}")
    for row in report["unreadable"]:
        print(f"left out, unreadable: {row['id']}: {row['reason']}", file=sys.stderr)
    for row in report["across_splits"]:
        print(
            f"{row['pictures']:,} pictures of {row['split']} ({row['share']:.2%}) have a copy in "
            f"{row['copy_in']}"
        )
    if report["dropped"]:
        print(f"{len(report['dropped']):,} training copies left out")
    elif any(row["split"] == "Train" for row in report["across_splits"]):
        print("nothing was left out; --drop_leaks leaves the training copies out")
    print(f"report: {out / 'leaks.md'}")
    print(f"next: python -m mnv4_jax.main --config=configs/small.py --config.data.dir={out} …")


if __name__ == "__main__":
    run(main)
