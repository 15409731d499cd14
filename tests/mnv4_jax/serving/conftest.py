"""A real server of an untrained detector on loopback."""

import contextlib
import subprocess
import sys
import urllib.request

import pytest

from tests.processes import ROOT, free_port

# A command in another process that knows the tests' network.
RUN = "from tests import small_net; from mnv4_jax import {0}; {0}.cli.run({0}.main)"


@contextlib.contextmanager
def serving(*flags: str):
    """(address, process) of `python -m mnv4_jax.serve`, ready to answer."""
    port = free_port()
    command = [sys.executable, "-c", RUN.format("serve"), f"--port={port}", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().strip()
        assert address == f"http://127.0.0.1:{port}/", process.stderr.read()
        for _ in range(200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}healthz"):
                break
        yield address, process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def started(run):
    """(address, process) of a server."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    pytest.importorskip("httpx", reason="the extra `serve` is not installed")
    with serving(f"--checkpoint={run}") as (address, process):
        yield address, process
        assert process.poll() is None  # it survived all that was sent


@pytest.fixture(scope="module")
def server(started):
    return started[0]
