"""Where pictures come from: an image folder, a prepared TFDS set, the demo set, a list of files.

Every source allows random access.
"""

import csv
import functools
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from input_pipeline import cache, listing, mixtures
from input_pipeline.cli import UserError
from input_pipeline.decode import decode

SPLITS = ("Train", "Validation", "Test")
_ALSO_CALLED = {"Val": "Validation", "Valid": "Validation", "Training": "Train", "Testing": "Test"}
CLASSES = ("Fake", "Real")  # the position is the label: 0 fake, 1 real
_CLASS_CALLED = {
    **dict.fromkeys(("fake", "fakes", "deepfake", "deepfakes", "manipulated", "synthetic"), "Fake"),
    **dict.fromkeys(("ai", "aigenerated", "generated", "tampered", "forged"), "Fake"),
    **dict.fromkeys(("real", "reals", "original", "originals", "authentic", "pristine"), "Real"),
}
LAYOUT = "{Train,Validation,Test}/{Fake,Real}/*.jpg"


class Source(Protocol):
    """A set of pictures, as the pipeline needs it. Picklable; many threads may read at once.

    Attributes:
        labels: [N] int32, 0 fake, 1 real, -1 unknown.
        ids: N unique names; for folders the path relative to the data folder.
        groups: one name per picture; pictures of one source (a video, say) share it. Or None.
    """

    labels: np.ndarray
    ids: Sequence[str]
    groups: Sequence[str] | None

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray:
        """[H, W, 3] uint8 RGB, picture `i`. Raises DecodeError or OSError if it cannot be read."""
        ...

    def encoded(self, i: int) -> bytes:
        """The file of picture `i`; only a source of files has it. Raises OSError."""
        ...

    def stamp(self, i: int) -> bytes:
        """Changes when the file of picture `i` changes; only training uses it."""
        ...


class FileSource:
    """Pictures given by their paths, in the order given."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        groups_file: str | None = None,
        sources_file: str | None = None,
        passed_over: Mapping[str, int] | None = None,
    ):
        self._paths = [os.fspath(path) for path in paths]
        self.labels = np.asarray([-1] * len(self) if labels is None else labels, np.int32)
        self.ids = self._paths if ids is None else list(ids)
        self._groups_file = groups_file
        self._sources_file = sources_file
        self.passed_over = dict(passed_over or {})  # files that are not pictures, by extension

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, i: int) -> np.ndarray:
        return decode(self.encoded(i))

    def encoded(self, i: int) -> bytes:
        # os.read instead of open(): it takes a third of the time, all of it under the GIL.
        descriptor = os.open(self._paths[i], os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            data = os.read(descriptor, size)
            while len(data) < size:  # a read may return less: signals, network file systems, 2 GiB
                more = os.read(descriptor, size - len(data))
                if not more:
                    raise OSError(f"ends after {len(data)} of {size} bytes")
                data += more
            return data
        finally:
            os.close(descriptor)

    def stamp(self, i: int) -> bytes:
        return cache.stamp(self._paths[i])

    def part(self, positions: Sequence[int]) -> "FileSource":
        """Some of its pictures, without groups: cheap to send to another process."""
        paths, ids = ([all_[i] for i in positions] for all_ in (self._paths, self.ids))
        return FileSource(paths, self.labels[list(positions)], ids)

    @functools.cached_property
    def groups(self) -> list[str] | None:
        """From `groups.csv` (columns file, group; file as Real/real_0.jpg), read on first use.

        Raises UserError if the file leaves a picture out: incomplete groups would silently narrow
        a confidence interval.
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
            group_of = {}
            for row in _rows(rows, self._groups_file):
                name, group = in_class(row["file"] or ""), row["group"]
                if group_of.setdefault(name, group) != group:
                    raise UserError(
                        f"{self._groups_file}: {name} is in the groups {group_of[name]} and"
                        f" {group}; give each picture one"
                    )
        names = [in_class(name) for name in self.ids]
        missing = [name for name in names if not group_of.get(name)]
        if missing:
            raise UserError(
                f"{self._groups_file}: no group for {missing[0]} ({len(missing)} pictures of "
                f"{len(names)} have none); expected a line for every picture, or no such file"
            )
        return [group_of[name] for name in names]

    @functools.cached_property
    def columns(self) -> dict[str, list[str]]:
        """The values in `sources.csv` of every picture: {column: N values}; "" if there is none.

        Raises UserError if the file names no picture of this source.
        """
        if self._sources_file is None:
            return {}
        with open(
            self._sources_file, newline="", encoding="utf-8-sig", errors="surrogateescape"
        ) as file:
            rows = csv.DictReader(file)
            if "file" not in (rows.fieldnames or ()):
                raise UserError(
                    f"{self._sources_file}: expected a column file (as Real/real_0.jpg); "
                    f"found {','.join(rows.fieldnames or ()) or 'an empty file'}"
                )
            by_name = {in_class(row["file"] or ""): row for row in _rows(rows, self._sources_file)}
            names = [name for name in rows.fieldnames or () if name != "file"]
        found = [by_name.get(in_class(i), {}) for i in self.ids]
        if not any(found):
            raise UserError(
                f"{self._sources_file}: names none of the {len(self)} pictures; expected their"
                " class and name, as Real/real_0.jpg"
            )
        return {name: [row.get(name) or "" for row in found] for name in names}


def _rows(rows: csv.DictReader, file: str) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise UserError(
            f"{file}, after line {rows.line_num}: {error}; expected comma-separated values,"
            " perhaps a quotation mark is missing"
        ) from None


class Subset:
    """Some pictures of another source, by their indices; without its groups."""

    groups = None

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self._indices = source, indices
        self.labels = np.asarray(source.labels)[indices]
        self.ids = [source.ids[i] for i in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, i: int) -> np.ndarray:
        return self._source.read(int(self._indices[i]))

    def encoded(self, i: int) -> bytes:
        return self._source.encoded(int(self._indices[i]))

    def stamp(self, i: int) -> bytes:
        return self._source.stamp(int(self._indices[i]))


def in_class(path: str) -> str:
    """CLASS/NAME, the form in which groups.csv names a file; CLASS is Fake or Real, whatever its
    folder is called.

    NAME may contain folders, and one of them may have the name of a class or a split.
    """
    *folders, name = path.replace("\\", "/").split("/")
    classes = [i for i, folder in enumerate(folders) if _class_called(folder)]
    below_a_split = [i for i in classes if i and _split_name(folders[i - 1]) in SPLITS]
    at = next(iter(below_a_split or classes), len(folders) - 1)
    spelled = [_class_called(f) or f.capitalize() for f in folders[at : at + 1]]
    return "/".join([*spelled, *folders[at + 1 :], name])


def _class_called(folder: str) -> str | None:
    """The class that a folder's name means, as 0_real or AI-generated."""
    words = re.sub(r"^[01][_\- ]", "", folder.lower())
    return _CLASS_CALLED.get(re.sub(r"[_\- ]", "", words))


def open_source(data_dir: str, split: str, *, one_class: bool = False) -> Source:
    """The pictures of one split.

    Args:
        data_dir: a folder laid out as LAYOUT (in any case; also inside one top folder, as in an
            archive), a folder written by `input_pipeline.prepare`, "" or "demo" for the demo set,
            or several of these separated by commas, see `mixtures.of`.
        split: one of SPLITS, in any case.
        one_class: accept a folder with Fake or Real alone.

    Raises:
        UserError: the folder or the split is missing or empty, or holds one class only.
    """
    if mixtures.is_mixture(data_dir):
        one = functools.partial(open_source, one_class=True)
        return mixtures.of(data_dir, split.capitalize(), has_split, one, one_class=one_class)
    data_dir = _data_folder(data_dir)
    if is_prepared(data_dir):
        from input_pipeline.prepared.source import (
            TfdsSource,  # importing tfds is slow, and only this branch needs it
        )

        return TfdsSource(data_dir, split, one_class)
    splits = _split_folders(data_dir)
    if split.capitalize() not in splits:
        raise UserError(
            f"data folder {data_dir}: no {split.capitalize()} folder (found: "
            f"{', '.join(_visible_folders(data_dir)) or 'no folder'}); expected {LAYOUT}"
        )
    return _folder_source(data_dir, splits[split.capitalize()], one_class)


def has_split(data_dir: str, split: str) -> bool:
    """Whether `open_source` would find a folder for this split. Raises the same UserErrors."""
    if mixtures.is_mixture(data_dir):
        return any(has_split(path, split) for path in mixtures.paths(data_dir))
    data_dir = _data_folder(data_dir)
    if is_prepared(data_dir):
        from input_pipeline.prepared.source import TfdsSource

        return TfdsSource.has_split(data_dir, split)
    return split.capitalize() in _split_folders(data_dir)


def _data_folder(data_dir: str) -> str:
    if not data_dir or (data_dir == "demo" and not os.path.isdir(data_dir)):
        from input_pipeline.demo import ensure_demo

        return os.fspath(ensure_demo())
    data_dir = os.path.expanduser(data_dir)  # a shell does not, after --config.data.dir=
    if not os.path.isdir(data_dir):
        what = "is a file" if os.path.exists(data_dir) else "does not exist"
        raise UserError(f"data folder {data_dir} {what}; expected a folder with {LAYOUT}")
    return data_dir


def is_prepared(folder: str) -> bool:
    """Whether TFDS wrote this folder, or the data set or its version below it, to the end."""
    patterns = ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
    found = [name for pattern in patterns for name in glob.glob(pattern, root_dir=folder)]
    return any("incomplete." not in name for name in found)


def _split_folders(data_dir: str) -> dict[str, str]:
    """{"Train": path, …}: in `data_dir`, else in the only folder below it with split folders."""
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


def _folder_source(data_dir: str, split_folder: str, one_class: bool) -> FileSource:
    classes = _class_folders(split_folder)
    passed_over = listing.PassedOver()
    of_class = {name: listing.pictures(folder, passed_over) for name, folder in classes.items()}
    enough = one_class and any(of_class.values())
    paths, labels = [], []
    for label, name in enumerate(CLASSES):
        if name not in classes and not enough:
            raise UserError(
                f"{split_folder}: no {name} folder (found:"
                f" {', '.join(_visible_folders(split_folder)) or 'no folder'});"
                " expected one folder Fake, one Real"
            )
        files = of_class.get(name, [])
        if not files and not enough:
            raise UserError(
                f"{classes[name]}: no pictures; expected files named"
                f" *{', *'.join(listing.EXTENSIONS)}{_after(listing.describe(passed_over))}"
            )
        paths += files
        labels += [label] * len(files)
    groups, of_sources = (os.path.join(split_folder, f"{n}.csv") for n in ("groups", "sources"))
    prefix = len(os.path.join(data_dir, ""))
    return FileSource(
        paths,
        labels,
        ids=[path[prefix:].replace(os.sep, "/") for path in paths],
        groups_file=groups if os.path.exists(groups) else None,
        sources_file=of_sources if os.path.exists(of_sources) else None,
        passed_over=passed_over,
    )


def _class_folders(split_folder: str) -> dict[str, str]:
    """{"Fake": path, "Real": path}, for the folders that exist, under any of their usual names.

    Raises UserError for two folders of one class: they might be classes of something else.
    """
    found: dict[str, str] = {}
    for spelled in _visible_folders(split_folder):
        name = _class_called(spelled)
        if name is None:
            continue
        if name in found:
            raise UserError(
                f"{split_folder}: both {os.path.basename(found[name])} and {spelled};"
                f" expected one folder {name}"
            )
        found[name] = os.path.join(split_folder, spelled)
    return found


def found(source: Source) -> dict[str, Any]:
    """{"fake": n, "real": n, "passed_over": {extension: n}} of a source, as JSON values."""
    fake, real = (int((np.asarray(source.labels) == label).sum()) for label in (0, 1))
    return {"fake": fake, "real": real, "passed_over": getattr(source, "passed_over", {})}


def describe(source: Source) -> str:
    """ "40 pictures (20 fake, 20 real); 3 files passed over: 3 .txt"."""
    counts = found(source)
    return (
        f"{len(source):,} pictures ({counts['fake']:,} fake, {counts['real']:,} real)"
        f"{_after(listing.describe(counts['passed_over']))}"
    )


def _after(text: str) -> str:
    return f"; {text}" if text else ""


def _visible_folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
        )


def _split_name(folder: str) -> str:
    return _ALSO_CALLED.get(folder.capitalize(), folder.capitalize())


def _named_folders(folder: str, names: Sequence[str]) -> dict[str, str]:
    """{name: path} of the sub-folders named one of `names`, in any case or a usual short form."""
    found: dict[str, str] = {}
    for spelled in _visible_folders(folder):
        name = _split_name(spelled)
        if name in names:
            if name in found:
                raise UserError(
                    f"{folder}: both {os.path.basename(found[name])} and {spelled};"
                    f" expected one folder {name}"
                )
            found[name] = os.path.join(folder, spelled)
    return found
