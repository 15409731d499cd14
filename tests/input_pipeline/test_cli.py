import errno
import io
import os
import re
import socket
import subprocess
import sys

import pytest
from PIL import Image

from input_pipeline import cli
from tests.processes import ROOT, free_port


def error_of(capsys, main) -> str:
    """The one line that `main` ends with, of exit status 2."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("missing/x", r"No such file or directory \(.*missing/x\): name a folder that exists"),
        ("file/x", r"Not a directory \(.*file/x\): name a folder, not a file"),
        ("file", r"File exists \(.*file\): name a folder, not a file"),
        ("a" * 300, r"File name too long \(.*\): name a shorter path"),
        ("loop/x", r"Too many levels of symbolic links \(.*loop/x\): name a path whose links"),
    ],
)
def test_a_folder_that_cannot_be_made_is_one_line_with_its_cure(tmp_path, capsys, path, expected):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    assert re.search(expected, error_of(capsys, lambda: os.mkdir(tmp_path / path)))


def test_any_other_error_that_names_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "x").write_text("")
    line = error_of(capsys, lambda: os.rmdir(tmp_path))
    assert line == f"error: Directory not empty ({tmp_path})"


def test_a_folder_where_a_file_is_needed_is_one_line_with_its_cure(tmp_path, capsys):
    line = error_of(capsys, lambda: tmp_path.write_text("x"))
    assert line == f"error: Is a directory ({tmp_path}): name a file, not a folder"


@pytest.mark.parametrize("name", [["share/x"], []])  # a file that is open already has none
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_lost_mount_is_one_line(capsys, code, name):
    def read():
        raise OSError(code, os.strerror(code), *name)

    assert "check that the disk or share is still mounted" in error_of(capsys, read)


def test_an_error_that_is_not_of_the_file_system_keeps_its_traceback():
    with pytest.raises(ConnectionRefusedError):
        cli.run(lambda: socket.create_connection(("127.0.0.1", free_port())))
    with pytest.raises(OSError, match="cannot identify image file"):  # it has no errno
        cli.run(lambda: Image.open(io.BytesIO(b"no picture")))


@pytest.mark.parametrize(("encoding", "times"), [("utf-8", "×".encode()), ("ascii", rb"\xd7")])
def test_a_name_that_is_not_utf8_can_be_printed_to_strict_streams(encoding, times):
    script = (
        "import sys\n"
        "from input_pipeline import cli\n"
        "sys.stderr.reconfigure(errors='strict')\n"
        "def main():\n"
        "    print('\\udcff\xd7')\n"
        "    raise cli.UserError('\\udcff: no such folder')\n"
        "cli.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True,
        timeout=120,
    )
    said = (done.returncode, done.stdout, done.stderr)
    assert said == (2, b"\xff" + times + b"\n", b"error: \xff: no such folder\n")


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
