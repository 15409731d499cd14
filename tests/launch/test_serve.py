"""The container file of the server: what it says, and its command on a read-only file system."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest

from tests.pictures import encoded, smooth
from tests.processes import ROOT, free_port

TEXT = (ROOT / "launch" / "serve" / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    joined = TEXT.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def test_it_runs_as_nobody():
    (user,) = instructions("USER")
    assert user == "65534:65534"
    assert TEXT.index("\nUSER") > TEXT.rindex("\nRUN"), "what is installed belongs to root"


def test_what_it_copies_and_installs_is_there():
    for line in instructions("COPY"):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    packages = (ROOT / "pyproject.toml").read_text()
    (extra,) = re.findall(r"'\.\[(\w+)\]'", "\n".join(instructions("RUN")))
    assert re.search(rf"^{extra} = \[", packages, re.MULTILINE)


@pytest.mark.serve
@pytest.mark.skipif(
    os.name != "posix" or os.getuid() != 0 or not shutil.which("unshare"),
    reason="making a file system read-only needs root on Linux",
)
def test_its_command_answers_where_only_tmp_can_be_written(tmp_path):
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace here")
    (entry,) = instructions("ENTRYPOINT")
    python, *words = json.loads(entry)
    assert python == "python"
    port = free_port()
    # The image's /tmp; the tests' own Python may lie below the real one.
    prepare = f"mount -t tmpfs none {tmp_path} && mount -o remount,bind,ro / && exec "
    variables = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "MNV4_CACHE": str(tmp_path)}
    variables |= {"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    command = " ".join([sys.executable, *words, f"--port={port}"])
    server = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"{prepare}{command}"],
        cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout.readline().strip() == f"http://0.0.0.0:{port}/", server.stderr.read()
        mounts = pathlib.Path(f"/proc/{server.pid}/mounts").read_text()
        assert [m.split()[3].split(",")[0] for m in mounts.splitlines() if m.split()[1] == "/"] == [
            "ro"
        ]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/predict", data=encoded(smooth(128, 128))
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            (result,) = json.load(response)["results"]
        assert result["reason"] == "no face found"
    finally:
        server.terminate()
        _, said = server.communicate(timeout=60)
    assert "Read-only" not in said
