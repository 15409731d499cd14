"""Makes a TFDS ArrayRecord set of an image folder, and says which pictures are in it twice.

    python -m input_pipeline.prepare --source=FOLDER --out=DIR [--drop_leaks]
    python -m input_pipeline.prepare --source=kaggle --out=DIR [--drop_leaks]

The files keep their bytes. DIR/leaks.md is the report to read, DIR/leaks.json the whole of it.
Training takes the set by --config.data.dir=DIR.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from input_pipeline import builder, leak_report, leaks
from input_pipeline.cli import ArgumentParser, UserError, run
from input_pipeline.decode import DecodeError
from input_pipeline.sources import (
    LAYOUT,
    SPLITS,
    FileSource,
    Source,
    has_split,
    open_source,
    printable,
)

KAGGLE_SET = "manjilkarki/deepfake-and-real-images"


def main() -> int | None:
    flags = _flags()
    out = pathlib.Path(flags.out)
    finished = out / builder.NAME / builder.VERSION
    facts = {"source": _spelled(flags.source), "drop_leaks": flags.drop_leaks}
    if (finished / "dataset_info.json").exists():
        return _already_there(finished, facts)

    folder = _kaggle_folder() if flags.source == "kaggle" else flags.source
    sources = _open(folder)
    _check_out(out, folder)

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with progress:
        scans, unreadable = _scan(sources, flags.threads, progress)
        pictures = [
            leak_report.Picture(
                source.ids[i],
                split,
                int(source.labels[i]),
                source.groups[i] if source.groups else None,
            )
            for split, source in sources.items()
            for i in scans[split]
        ]
        comparing = progress.add_task("comparing", total=None)
        prints = [mark for scan in scans.values() for _, mark in scan.values()]
        duplicates = leaks.find_duplicates(prints)
        progress.update(comparing, total=1, completed=1)

        report = leak_report.report(
            pictures, duplicates, unreadable=unreadable, dropped=flags.drop_leaks
        )
        dropped = set(report["dropped"])
        splits = {}
        for split, source in sources.items():
            keep = [i for i in scans[split] if source.ids[i] not in dropped]
            n_bytes = sum(scans[split][i][0] for i in keep)
            splits[split] = builder.Split(source, keep, n_bytes)
        _check_space(out, sum(split.n_bytes for split in splits.values()))
        _write_text(out / "leaks.json", json.dumps(report, indent=1))
        _write_text(out / "leaks.md", leak_report.page(report))

        writing = progress.add_task("writing", total=sum(len(s.keep) for s in splits.values()))
        _write_set(out, splits, facts, on_written=lambda: progress.advance(writing))
    _say_result(out, report, splits)
    return None


def _flags() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m input_pipeline.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--source", required=True, help=f"a folder {LAYOUT}, or: kaggle")
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument(
        "--drop_leaks",
        action="store_true",
        help="leave out the Train pictures that have a copy in Validation or Test",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: cores")
    flags = parser.parse_args()
    if flags.threads < 1:
        parser.error(f"--threads={flags.threads}: expected 1 or more")
    return flags


def _spelled(source: str) -> str:
    return source if source == "kaggle" else os.path.realpath(source)


def _already_there(finished: pathlib.Path, facts: dict) -> None:
    """A finished set is left alone; one of another source or option must not pass for this one."""
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
    except Exception as error:  # no network, no disk, Kaggle's own refusals: each its own class
        raise UserError(
            f"Kaggle's {KAGGLE_SET} could not be downloaded: {error} (it can be unpacked by hand: "
            "--source=FOLDER)"
        ) from error


def _open(folder: str) -> dict[str, FileSource]:
    if not folder:
        raise UserError("--source is empty: expected a folder, or: kaggle")
    names = [split for split in SPLITS if has_split(folder, split)]
    if not names:
        raise UserError(f"--source={folder}: no split found; expected {LAYOUT}")
    sources = {name: open_source(folder, name) for name in names}
    if not all(isinstance(source, FileSource) for source in sources.values()):
        raise UserError(f"--source={folder} is a prepared set already; expected {LAYOUT}")
    return sources


def _check_out(out: pathlib.Path, folder: str) -> None:
    inside = pathlib.Path(folder).resolve()
    if inside in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out={out} lies inside the source {folder}: name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # TFDS removes these itself unless it was killed.
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
        if printable(source.ids[i]) != source.ids[i]:
            return "its name is not UTF-8"
        try:
            data = source.read(i)
            return len(data), leaks.fingerprint(data)
        except (DecodeError, OSError) as error:
            return " ".join(str(error).split())

    scans, unreadable = defaultdict(dict), []
    reading = progress.add_task("reading", total=sum(len(s) for s in sources.values()))
    pool = ThreadPoolExecutor(threads)
    try:
        for split, source in sources.items():
            for i, found in enumerate(pool.map(lambda i, s=source: look(s, i), range(len(source)))):
                if isinstance(found, str):
                    unreadable.append((printable(source.ids[i]), found))
                else:
                    scans[split][i] = found
                progress.advance(reading)
            if not scans[split]:
                raise UserError(f"{split}: none of its {len(source)} pictures can be read")
    finally:
        pool.shutdown(cancel_futures=True)
    return dict(scans), unreadable


def _write_text(path: pathlib.Path, text: str) -> None:
    """Whole or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _write_set(
    out: pathlib.Path,
    splits: dict[str, builder.Split],
    facts: dict,
    on_written: Callable[[], None],
) -> None:
    writer = builder.DeepfakeFaces(
        data_dir=os.fspath(out), splits=splits, facts=facts, on_written=on_written
    )
    try:
        writer.write()
    except UserError:
        raise
    except Exception as error:
        # ArrayRecord's own errors say it in their text only.
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
