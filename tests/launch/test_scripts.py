import os
import shutil
import subprocess
import sys

import pytest

from tests.launch.stand_in import ROOT

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
LAUNCHERS = [*SCRIPTS, ROOT / "launch/gke/jobset.yaml"]


def test_there_are_scripts_to_check():
    assert len(SCRIPTS) == 4


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    # It is installed beside Python, which may not be on PATH.
    program = shutil.which(
        "shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    )
    if not program:
        pytest.skip("shellcheck is not installed (extra: test)")
    done = subprocess.run([program, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.name)
def test_every_launcher_says_what_it_needs_what_it_costs_and_how_to_stop_it(launcher):
    header = launcher.read_text().split("set -e")[0]
    for word in ("# Needs:", "# Costs:", "# Stop:"):
        assert word in header
