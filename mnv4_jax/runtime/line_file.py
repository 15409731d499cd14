"""Files of a run that grow line by line, on a disk or in a bucket, and survive a kill."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

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
    """Appends to a file. In a bucket, rewrites the whole file: gcsfs treats "a" as "w"."""
    if in_bucket(file):
        replace_text(file, (file.read_text() if file.exists() else "") + text)
    else:
        with file.open("a") as stream:
            stream.write(text)


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether `path` is in a bucket (gs://… and the like), where files cannot be appended to."""
    return "://" in os.fspath(path)


def read_lines(file: epath.Path) -> list[dict]:
    """The lines that a `LineFile` wrote; leaves out a last line that a power cut truncated."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def replace_text(file: epath.Path, text: str) -> None:
    """Writes a file atomically: a kill at any moment leaves the old file or the new one."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)


def finite(value: Any) -> Any:
    """`value` with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(values: Mapping) -> str:
    return json.dumps(values) + "\n"
