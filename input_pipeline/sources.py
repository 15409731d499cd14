"""Where encoded pictures come from: an image folder, a prepared TFDS set, the demo set, a list.

Every source is random access and returns the file's bytes; decoding is the next room.
"""

import csv
import functools
import glob
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from input_pipeline.cli import UserError

SPLITS = ("Train", "Validation", "Test")
CLASSES = ("Fake", "Real")  # the position is the label: 0 fake, 1 real
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
LAYOUT = "{Train,Validation,Test}/{Fake,Real}/*.jpg"


class Source(Protocol):
    """What the pipeline needs of a set of pictures. Picklable, and read from many threads at once.

    Attributes:
        labels: [N] int32, 0 fake, 1 real, -1 unknown.
        ids: N unique names; for folders the path relative to the data folder.
        groups: what pictures belong together (one source video, say), one name a picture; or None.
    """

    labels: np.ndarray
    ids: Sequence[str]
    groups: Sequence[str] | None

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes:
        """The encoded picture `i`. Raises OSError where it cannot be read."""
        ...


def printable(name: str) -> str:
    """`name` as text that can be written anywhere: names of files need not be UTF-8."""
    return name.encode(errors="backslashreplace").decode()


class FileSource:
    """Pictures given by their paths, in the order given."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        groups_file: str | None = None,
    ):
        self._paths = [os.fspath(path) for path in paths]
        self.labels = np.asarray([-1] * len(self) if labels is None else labels, np.int32)
        self.ids = self._paths if ids is None else list(ids)
        self._groups_file = groups_file

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, i: int) -> bytes:
        # os.read rather than open(): a third of the time, and all of it is spent under the GIL.
        descriptor = os.open(self._paths[i], os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            data = os.read(descriptor, size)
            while len(data) < size:  # a read may stop short: signals, network file systems, 2 GiB
                more = os.read(descriptor, size - len(data))
                if not more:
                    raise OSError(f"ends after {len(data)} of {size} bytes")
                data += more
            return data
        finally:
            os.close(descriptor)

    @functools.cached_property
    def groups(self) -> list[str] | None:
        """From `groups.csv` (columns file, group; file as Real/real_0.jpg), read on first use.

        Raises UserError if the file leaves a picture out: half-known groups would narrow a
        confidence interval without anyone noticing.
        """
        if self._groups_file is None:
            return None
        with open(
            self._groups_file, newline="", encoding="utf-8-sig", errors="surrogateescape"
        ) as file:
            rows = csv.DictReader(file)
            if not {"file", "group"} <= set(rows.fieldnames or ()):
                raise UserError(
                    f"{self._groups_file}: expected the columns file,group; "
                    f"found {','.join(rows.fieldnames or ()) or 'an empty file'}"
                )
            group_of = {_in_class(row["file"] or ""): row["group"] for row in rows}
        names = [_in_class(name) for name in self.ids]
        missing = [name for name in names if not group_of.get(name)]
        if missing:
            raise UserError(
                f"{self._groups_file}: no group for {missing[0]} ({len(missing)} pictures of "
                f"{len(names)} have none); expected a line for every picture, or no such file"
            )
        return [group_of[name] for name in names]


class Subset:
    """Some pictures of another source, by their indices; without its groups."""

    groups = None

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self._indices = source, indices
        self.labels = np.asarray(source.labels)[indices]
        self.ids = [source.ids[i] for i in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, i: int) -> bytes:
        return self._source.read(int(self._indices[i]))


def _in_class(path: str) -> str:
    """CLASS/NAME, which is how groups.csv names a file; folders may be of any case."""
    *_, folder, name = ["", *path.replace("\\", "/").split("/")]
    return f"{folder.capitalize()}/{name}"


def open_source(data_dir: str, split: str) -> Source:
    """The pictures of one split.

    Args:
        data_dir: a folder laid out as LAYOUT (any case; inside one top folder of an archive too), a
            folder written by `input_pipeline.prepare`, or "" for the demo set.
        split: one of SPLITS, in any case.

    Raises:
        UserError: the folder or the split is missing or empty, or holds one class only.
    """
    data_dir = _data_folder(data_dir)
    if _is_prepared(data_dir):
        from input_pipeline.tfds_source import TfdsSource  # only this branch pays for tfds' import

        return TfdsSource(data_dir, split)
    splits = _split_folders(data_dir)
    if split.capitalize() not in splits:
        raise UserError(
            f"data folder {data_dir}: no {split.capitalize()} folder (found: "
            f"{', '.join(_visible_folders(data_dir)) or 'no folder'}); expected {LAYOUT}"
        )
    return _folder_source(data_dir, splits[split.capitalize()])


def has_split(data_dir: str, split: str) -> bool:
    """Whether `open_source` would find a folder for this split. Raises UserError as it does."""
    data_dir = _data_folder(data_dir)
    if _is_prepared(data_dir):
        from input_pipeline.tfds_source import TfdsSource

        return TfdsSource.has_split(data_dir, split)
    return split.capitalize() in _split_folders(data_dir)


def _data_folder(data_dir: str) -> str:
    if not data_dir:
        from input_pipeline.demo import ensure_demo

        return os.fspath(ensure_demo())
    data_dir = os.path.expanduser(data_dir)  # no shell does, after --config.data.dir=
    if not os.path.isdir(data_dir):
        what = "is a file" if os.path.exists(data_dir) else "does not exist"
        raise UserError(f"data folder {data_dir} {what}; expected a folder with {LAYOUT}")
    return data_dir


def _is_prepared(folder: str) -> bool:
    """Whether TFDS wrote this folder, or the data set or its version below it."""
    patterns = ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
    return any(glob.glob(pattern, root_dir=folder) for pattern in patterns)


def _split_folders(data_dir: str) -> dict[str, str]:
    """{"Train": path, …}: in `data_dir` itself, else in the one folder below it that has any."""
    found = _named_folders(data_dir, SPLITS)
    if found:
        return found
    below = [os.path.join(data_dir, name) for name in _visible_folders(data_dir)]
    below = [splits for splits in (_named_folders(folder, SPLITS) for folder in below) if splits]
    if len(below) > 1:
        raise UserError(
            f"data folder {data_dir} holds {len(below)} image sets; expected the path of one"
        )
    return below[0] if below else {}


def _folder_source(data_dir: str, split_folder: str) -> FileSource:
    classes = _named_folders(split_folder, CLASSES)
    paths, labels = [], []
    for label, name in enumerate(CLASSES):
        if name not in classes:
            raise UserError(f"{split_folder}: no {name} folder; expected one folder Fake, one Real")
        files = _pictures(classes[name])
        if not files:
            raise UserError(
                f"{classes[name]}: no pictures; expected files named *{', *'.join(EXTENSIONS)}"
            )
        paths += files
        labels += [label] * len(files)
    groups = os.path.join(split_folder, "groups.csv")
    prefix = len(os.path.join(data_dir, ""))
    return FileSource(
        paths,
        labels,
        ids=[path[prefix:].replace(os.sep, "/") for path in paths],
        groups_file=groups if os.path.exists(groups) else None,
    )


def is_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture."""
    # "._photo.jpg" is what macOS leaves beside "photo.jpg" in an archive.
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _pictures(folder: str) -> list[str]:
    """The picture files of one folder, sorted by name: 190,000 in half a second."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_picture(entry.name) and entry.is_file()]
    return [os.path.join(folder, name) for name in sorted(names)]


def _visible_folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
        )


def _named_folders(folder: str, names: Sequence[str]) -> dict[str, str]:
    """Those sub-folders called one of `names` in any case, under the spelling of `names`."""
    found: dict[str, str] = {}
    for name in _visible_folders(folder):
        if name.capitalize() in names:
            if name.capitalize() in found:
                raise UserError(
                    f"{folder}: both {os.path.basename(found[name.capitalize()])} and {name}; "
                    f"expected one folder {name.capitalize()}"
                )
            found[name.capitalize()] = os.path.join(folder, name)
    return found
