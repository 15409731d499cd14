"""Real jobs of `mnv4_jax.score` for tests and benchmarks, each with a Ray of its own on this
machine, to be killed and bounded in time."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time

import psutil

from tests.processes import ROOT

_TIMEOUT_S = 240


class Job:
    """A started `mnv4_jax.score`; all of its processes are killed at the end of a `with`."""

    def __init__(self, *flags, compiled: pathlib.Path, path: pathlib.Path = ROOT):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{ROOT}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mnv4_jax.score", "--cpus=2", *map(str, flags)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in [*self.below(), self.process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)

    def below(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def find(self, name: str) -> list[psutil.Process]:
        """This job's processes whose title has `name`, as Ray gives it while they work."""
        found = []
        for process in self.below():
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def wait_for(self, condition, what: str):
        deadline = time.monotonic() + _TIMEOUT_S
        while not (found := condition()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"no {what}"
            time.sleep(0.02)
        return found

    def end(self, expected: int) -> str:
        out, err = self.process.communicate(timeout=_TIMEOUT_S)
        assert self.process.returncode == expected, out + err
        return out + err


def parts(out) -> list[pathlib.Path]:
    return list((out / "scores").glob("part-*")) if (out / "scores").is_dir() else []
