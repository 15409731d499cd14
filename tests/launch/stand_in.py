"""Stand-ins for cloud commands: each records how it was called and plays back what a file says."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

# Calls are answered by the first rule left whose "when" is part of the command line; a rule answers
# once. Without one the command succeeds and says nothing.
_PROGRAM = """#!{python}
import fcntl, json, pathlib, sys
folder = pathlib.Path({folder!r})
with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    line = " ".join([{name!r}, *sys.argv[1:]])
    with open(folder / "calls", "a") as calls:
        calls.write(line + "\\n")
    rules = json.loads((folder / "rules").read_text())
    answer = next((rule for rule in rules if rule["when"] in line), None)
    if answer:
        rules.remove(answer)
        (folder / "rules").write_text(json.dumps(rules))
if answer:
    print(answer.get("say", ""))
    sys.exit(answer.get("status", 0))
"""


class StandIns:
    """Programs in `folder` to be put at the front of PATH."""

    def __init__(self, folder: pathlib.Path, *names: str):
        self.folder = folder
        for name in names:
            program = folder / name
            program.write_text(
                _PROGRAM.format(python=sys.executable, folder=str(folder), name=name)
            )
            program.chmod(0o755)
        self.play()

    def play(self, *rules: dict) -> None:
        """Rules {"when": text, "say": text, "status": number}, in the order of use."""
        (self.folder / "rules").write_text(json.dumps(rules))

    def calls(self, part: str = "") -> list[str]:
        """Command lines so far that contain `part`."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if part in line]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs a script of launch/ with the stand-ins, from the project's folder."""
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PATH": path, "POLL_S": "0", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
