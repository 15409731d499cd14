"""Breaks the code on purpose, one fault at a time, and sees whether its tests notice.

    python -m tests.faults.run [--only=WORD] [--jobs=2] [--timeout_s=300] [--table=docs/FAULTS.md]

Works in scratch copies of the tree as it stands. First the tests are run there without a fault, and
must pass. Then prints a line a fault and writes a table. A fault is seen where one of its tests
fails. Exit status: 0 where all that were run are seen, 2 where tests fail without one, else 1.
"""

import argparse
import concurrent.futures
import datetime
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from tests.faults.catalogue import FAULTS, Fault

ROOT = pathlib.Path(__file__).resolve().parents[2]
_FAILED, _PASSED = 1, 0  # exit statuses of pytest


class Outcome(NamedTuple):
    """`verdict`: "seen", "unseen", "stale" (the old text is not there once), or why neither."""

    fault: Fault
    verdict: str
    by: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--only", default="", help="faults whose kind or file has one of these, by commas"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout_s", type=float, default=300)
    parser.add_argument("--table", type=pathlib.Path, help="a Markdown file to write")
    args = parser.parse_args()
    words = args.only.split(",")
    faults = [f for f in FAULTS if any(word in f"{f.kind} {f.file}" for word in words)]

    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        copies = queue.Queue()
        for i in range(args.jobs):
            copies.put(_copy(pathlib.Path(folder) / str(i)))

        if failed := fail_without_a_fault(faults, copies.queue[0]):
            print("these fail without a fault:", *failed, sep="\n  ")
            return 2

        def try_one(fault: Fault) -> Outcome:
            copy = copies.get()
            try:
                return attempt(fault, copy, args.timeout_s)
            finally:
                copies.put(copy)

        outcomes = []
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for outcome in pool.map(try_one, faults):
                outcomes.append(outcome)
                print(f"{outcome.verdict:7} {outcome.fault.kind} [{outcome.by}]", flush=True)
                if args.table:  # so that a run that is stopped leaves what it has
                    args.table.write_text(page(outcomes, len(FAULTS)))
    seen = sum(outcome.verdict == "seen" for outcome in outcomes)
    print(f"{seen} of {len(outcomes)} seen")
    return 0 if seen == len(outcomes) else 1


def _copy(to: pathlib.Path) -> pathlib.Path:
    """The tree as git knows it, changes and new files included."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    for name in map(os.fsdecode, names.split(b"\0")):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def fail_without_a_fault(faults: list[Fault], copy: pathlib.Path) -> list[str]:
    """The tests of `faults` that fail in the tree as it stands: they would see anything."""
    tests = sorted({test for fault in faults for test in fault.tests})
    files = {test for test in tests if "::" not in test}
    done = _pytest([t for t in tests if t in files or t.split("::")[0] not in files], copy)
    return re.findall(r"^(?:FAILED|ERROR) (\S*)", done.stdout, re.MULTILINE)


def _pytest(arguments: Sequence[str], copy: pathlib.Path, timeout_s: float | None = None):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=copy,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def attempt(fault: Fault, copy: pathlib.Path, timeout_s: float) -> Outcome:
    """Applies `fault` in `copy`, runs its tests until one fails, and takes it back."""
    file = copy / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        return Outcome(fault, "stale", f"{text.count(fault.old)} places", 0.0)
    file.write_text(text.replace(fault.old, fault.new))
    start = time.monotonic()
    try:
        done = _pytest(["-x", *fault.tests], copy, timeout_s)
    except subprocess.TimeoutExpired:
        return Outcome(fault, "timeout", "", timeout_s)
    finally:
        file.write_text(text)
    seconds = time.monotonic() - start
    failed = re.search(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE)
    if done.returncode == _FAILED and failed:
        return Outcome(fault, "seen", failed[1], seconds)
    if done.returncode == _PASSED:
        return Outcome(fault, "unseen", "", seconds)
    return Outcome(fault, "broken", f"pytest ended with {done.returncode}", seconds)


def page(outcomes: list[Outcome], n_all: int) -> str:
    """The table of `outcomes`, as Markdown."""
    count = {v: sum(o.verdict == v for o in outcomes) for v in ("seen", "unseen")}
    rest = len(outcomes) - sum(count.values())
    lines = [
        "# Deliberate faults",
        "",
        "Each row is one line of the code made wrong in a scratch copy, and the test that failed",
        "for it: `python -m tests.faults.run --table=docs/FAULTS.md`. The faults are listed in",
        "[tests/faults/catalogue.py](../tests/faults/catalogue.py).",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} CPU cores: {len(outcomes)} of {n_all} faults"
        f" were run; {count['seen']} were seen, {count['unseen']} were not"
        + (f", {rest} could not be judged." if rest else "."),
        "",
        "| fault | in | verdict | first test that failed | s |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {o.fault.kind} | {o.fault.file} | {o.verdict} | {o.by} | {o.seconds:.0f} |"
        for o in outcomes
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
