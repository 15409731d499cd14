"""Real runs for tests: processes over loopback that train `tests/small_net.py`, bounded in time."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

from tests import small_net  # noqa: F401  so that its checkpoints can be loaded here

ROOT = pathlib.Path(__file__).parent.parent
_TIMEOUT_S = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Run:
    """One start of `python -m mnv4_jax.main` as `processes` processes of `devices` CPU devices.

    Use it in a `with`: whatever is still running at the end is killed. Their output is in
    `workdir/output_<i>.txt`, and in the message of a failed `wait`.

    Args:
      workdir, data: folders.
      cache: folder of compiled programs, shared by the runs of a session.
      overrides: of the config, by dotted name.
      environment: more variables.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        data: pathlib.Path,
        cache: pathlib.Path,
        *,
        processes: int = 1,
        devices: int = 4,
        overrides: dict | None = None,
        environment: dict | None = None,
    ):
        self.workdir, self.processes = pathlib.Path(workdir), []
        self._outputs = []
        self._left_over = _unfinished(self.workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        fields = {"data.dir": data, **(overrides or {})}
        command = [sys.executable, "-m", "mnv4_jax.main", "--config=tests/small_net.py"]
        command += [f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        address = f"127.0.0.1:{free_port()}"
        for i in range(processes):
            peers = [f"--coordinator={address}", f"--num_processes={processes}"]
            peers += [f"--process_id={i}", "--peer_timeout_s=100"]
            self._outputs.append((self.workdir / f"output_{i}.txt").open("wb"))
            self.processes.append(
                subprocess.Popen(
                    command + (peers if processes > 1 else []),
                    cwd=ROOT,
                    env=_environment(devices, cache) | (environment or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=self._outputs[-1],
                    stderr=subprocess.STDOUT,
                )
            )

    def wait(self, expected: int | None = 0, timeout_s: float = _TIMEOUT_S) -> list[int]:
        """Exit statuses; AssertionError, with what was printed, where one is not `expected`."""
        deadline = time.monotonic() + timeout_s
        try:
            statuses = [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over after {timeout_s} s:\n{self.output()}") from None
        if expected is not None and any(status != expected for status in statuses):
            raise AssertionError(f"exit statuses {statuses}, not {expected}:\n{self.output()}")
        return statuses

    def wait_for_step(self, step: int, timeout_s: float = _TIMEOUT_S) -> None:
        """Returns as soon as this start has logged `step` or a later one."""
        deadline = time.monotonic() + timeout_s
        while self.step() < step:
            assert time.monotonic() < deadline, f"no step {step}:\n{self.output()}"
            assert self.alive(), f"ended before step {step}:\n{self.output()}"
            time.sleep(0.01)

    def step(self) -> int:
        """The last step that this start has logged, 0 before the first."""
        return max(map(int, re.findall(r"^step (\d+)/", self._text(0), re.MULTILINE)), default=0)

    def resumed_from(self) -> int:
        """The checkpoint that this start says it goes on from, 0 if none."""
        found = re.search(r"going on from step (\d+)", self._text(0))
        return int(found[1]) if found else 0

    def saving(self) -> bool:
        """Whether this start has a save under way; what an earlier one left behind is none."""
        return bool(_unfinished(self.workdir) - self._left_over)

    def alive(self) -> bool:
        return all(p.poll() is None for p in self.processes)

    def send(self, number: signal.Signals, process: int) -> None:
        self.processes[process].send_signal(number)

    def kill(self) -> None:
        """SIGKILL to all of them."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def output(self, characters: int = 3000) -> str:
        """What each process printed since this start; the ends of it."""
        texts = [self._text(i) for i in range(len(self._outputs))]
        return "\n".join(f"--- process {i}\n{t[-characters:]}" for i, t in enumerate(texts))

    def _text(self, process: int) -> str:
        return pathlib.Path(self._outputs[process].name).read_text(errors="replace")

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        for output in self._outputs:
            output.close()


def _environment(devices: int, cache: pathlib.Path) -> dict[str, str]:
    cluster = ("SLURM_", "OMPI_", "JAX_", "XLA_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(cluster)}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # A third of the time to compile; what is computed stays the same for all shapes.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONUNBUFFERED": "1",
    }


def read_lines(file: pathlib.Path) -> list[dict]:
    """The JSON objects of a file that may be written at this moment."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def _unfinished(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """Names and inodes of the folders of saves that have begun and are not committed."""
    found = set()
    for folder in (workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((folder.name, folder.stat().st_ino))
    return found


def digests(workdir: pathlib.Path) -> dict[int, str]:
    """{step: hash of its global batch}; AssertionError where a step is there twice."""
    lines = read_lines(workdir / "digests.jsonl")
    found = {line["step"]: line["sha256"] for line in lines}
    assert len(found) == len(lines), f"a step twice in {workdir / 'digests.jsonl'}"
    return found


def losses(workdir: pathlib.Path, split: str = "train") -> dict[int, float]:
    lines = read_lines(workdir / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if line["split"] == split}


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """Committed checkpoints; unfinished ones have longer names."""
    folder = workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())
