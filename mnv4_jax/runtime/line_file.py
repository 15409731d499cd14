"""Files of a run that grow line by line, on a disk or in a bucket, and survive a kill."""

import json
import os
from collections.abc import Iterable, Mapping

from etils import epath


class LineFile:
    """A file of JSON lines that grows; in a bucket (gs://…), only when `flush` is called."""

    def __init__(self, file: epath.Path, lines: Iterable[Mapping]):
        self._file = file
        self._text = "".join(map(_line, lines))
        replace_text(file, self._text)

    def append(self, line: Mapping) -> None:
        if in_bucket(self._file):
            self._text += _line(line)
        else:
            append_text(self._file, _line(line))

    def flush(self) -> None:
        if in_bucket(self._file):
            replace_text(self._file, self._text)


def append_text(file: epath.Path, text: str) -> None:
    """At the end of a file. In a bucket by writing it anew: gcsfs takes "a" for "w"."""
    if in_bucket(file):
        replace_text(file, (file.read_text() if file.exists() else "") + text)
    else:
        with file.open("a") as stream:
            stream.write(text)


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether `path` is one of gs://… and the like, where no file can be appended to."""
    return "://" in os.fspath(path)


def read_lines(file: epath.Path) -> list[dict]:
    """What a `LineFile` wrote; a last line cut short by a power cut is left out."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def replace_text(file: epath.Path, text: str) -> None:
    """Writes a file whole or not at all: a kill at any moment leaves the old one or the new one."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)


def _line(values: Mapping) -> str:
    return json.dumps(values) + "\n"
