import os
import re
import subprocess
import sys

import pytest

from input_pipeline import cli
from tests.processes import ROOT


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("missing/x", r"No such file or directory \(.*missing/x\): name a folder that exists"),
        ("file/x", r"Not a directory \(.*file/x\): name a folder, not a file"),
        ("file", r"File exists \(.*file\): name a folder, not a file"),
        ("a" * 300, r"File name too long \(.*\): name a shorter path"),
    ],
)
def test_a_folder_that_cannot_be_made_is_one_line_with_its_cure(tmp_path, capsys, path, expected):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: os.mkdir(tmp_path / path))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(expected, line)


def test_ctrl_c_is_one_line_and_status_130():
    """As training ends: within `exit_promptly`, by a real SIGINT."""
    script = (
        "import os, signal\n"
        "from input_pipeline import cli\n"
        "from mnv4_jax.runtime import processes\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background jobs
        "with processes.exit_promptly():\n"
        "    cli.run(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
