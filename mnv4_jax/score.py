"""Scores many pictures: python -m mnv4_jax.score --input=SOURCE --out=DIR [--checkpoint=DIR]

SOURCE is a folder, a glob, a .txt or .parquet list of paths or URLs, a .parquet set with encoded
bytes, .tar shards, or a prepared set. DIR/scores gets Parquet files with one row a picture: row,
path, p_fake, label, face, error, reason, checkpoint. After a stop, the same command resumes.
Runs on Ray Data (pip install -e '.[ray]'): on this machine, or with --ray=HOST:PORT on a cluster.
Exit status: 0 done, 1 some pictures were unreadable, 2 an error that the user can fix.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence

import rich.console
import rich.progress

from input_pipeline import cli, engine
from mnv4_jax.detector import thresholds

_LINE_EVERY_S = 30.0  # if standard error is not a terminal


def main() -> int:
    args = parse(sys.argv[1:])
    engine.require()
    from mnv4_jax.fleet import job as jobs  # imports pyarrow and fsspec, which come with Ray
    from mnv4_jax.fleet import summary

    find_faces = args.checkpoint is None if args.faces is None else args.faces
    options = jobs.Options(
        source=args.input,
        out=args.out,
        checkpoint=args.checkpoint,
        raw=args.raw,
        column=args.column,
        limit=args.limit,
        shard_rows=args.shard_rows,
        faces=find_faces,
        keep_crops=args.faces is None,
        threshold=lambda fitted: thresholds.choose(args.threshold, fitted),
        scorers=args.scorers,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(summary.held(options.out))
        listed = jobs.list_input(options)
        ray = stack.enter_context(engine.running(args.ray, cpus=args.cpus))
        job = jobs.open_job(ray, options, listed)
        total, left = int(job.plan.rows.sum()), job.rows_left()
        parts = [f"{total:,} pictures in {len(job.plan.rows):,} shards"]
        parts += [f"{total - left:,} done already"] * (left < total) + [job.given.note]
        print("; ".join(filter(None, parts)), file=sys.stderr)
        with _progress(total, total - left) as advance:
            jobs.run(ray, job, advance)
    found = summary.write(job.store, job.plan.rows, job.threshold)
    print(summary.describe(found, args.out))
    return 1 if found.unreadable else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(prog="python -m mnv4_jax.score", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--input", required=True, metavar="SOURCE")
    parser.add_argument(
        "--out",
        required=True,
        type=os.path.expanduser,  # a shell does not, after --out=
        metavar="DIR",
        help="a folder or a URL",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="a workdir, or one checkpoint in it; default: the detector in the box",
    )
    parser.add_argument("--raw", action="store_true", help="weights as trained, not averaged")
    parser.add_argument("--threshold", default="0.5", metavar="P", help=thresholds.HELP)
    parser.add_argument(
        "--faces",
        action=argparse.BooleanOptionalAction,
        help="find and crop faces first; of several, the row has the one most probably fake"
        " (default with the detector in the box, unless a picture is a face's crop already)",
    )
    parser.add_argument("--column", metavar="NAME", help="of a Parquet file: paths, or pictures")
    parser.add_argument("--limit", type=_positive, metavar="N", help="the first N pictures only")
    parser.add_argument(
        "--shard_rows", type=_positive, default=10_000, metavar="N", help="rows a file (10000)"
    )
    parser.add_argument(
        "--ray", metavar="HOST:PORT", help="of a cluster, or auto; default: this machine alone"
    )
    parser.add_argument(
        "--scorers", type=_positive, default=0, metavar="N", help="processes with the detector"
    )
    parser.add_argument(
        "--cpus", type=_positive, metavar="N", help="cores to use, without --ray (default: all)"
    )
    args = parser.parse_args(argv)
    thresholds.check(parser, args.threshold)
    if args.ray and args.cpus:
        parser.error("--cpus: a cluster knows its own; leave it out with --ray")
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of 1 or more")
    return int(text)


def _progress(total: int, done: int):
    if sys.stderr.isatty():
        return _bar(total, done)
    return _lines(total, done)


@contextlib.contextmanager
def _bar(total: int, done: int) -> Iterator:
    columns = (
        rich.progress.TextColumn("scoring"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
    )
    rate = _Rate()
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done, rate="")
        yield lambda n: bar.update(task, advance=n, rate=f"{rate.add(n):,.0f} pictures/s")


@contextlib.contextmanager
def _lines(total: int, done: int) -> Iterator:
    rate, said = _Rate(), time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, said
        done += n
        per_s = rate.add(n)
        if time.monotonic() - said >= _LINE_EVERY_S:
            said = time.monotonic()
            left_s = (total - done) / max(per_s, 1e-9)
            print(
                f"{done:,} of {total:,} pictures, {per_s:,.0f} pictures/s,"
                f" {left_s / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )

    yield advance


class _Rate:
    """Pictures per second since the first answer."""

    def __init__(self):
        self._since, self._n = None, 0

    def add(self, n: int) -> float:
        now = time.monotonic()
        if self._since is None:
            self._since = now  # the first block includes the start-up
            return 0.0
        self._n += n
        return self._n / max(now - self._since, 1e-9)


if __name__ == "__main__":
    cli.run(main)
