"""What grows line by line, on a disk and in a bucket."""

import math

import fsspec
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from mnv4_jax.runtime import line_file


class GoogleStorage(MemoryFileSystem):
    """As gcsfs has it: "a" begins the file anew."""

    protocol = ("gcs", "gs")

    def _open(self, path, mode="rb", **kwargs):
        return super()._open(path, mode.replace("a", "w"), **kwargs)


@pytest.fixture
def bucket():
    fsspec.register_implementation("gcs", GoogleStorage, clobber=True)
    yield epath.Path("gs://bucket/run")
    fsspec.register_implementation("gcs", "gcsfs.GCSFileSystem", clobber=True)


def test_lines_are_kept_where_nothing_can_be_appended_to(bucket):
    lines = line_file.LineFile(bucket / "lines.jsonl", [{"step": 1}])
    for step in (2, 3):
        lines.append({"step": step})
        lines.flush()
    assert line_file.read_lines(bucket / "lines.jsonl") == [{"step": step} for step in (1, 2, 3)]
    for name in ("a", "b"):
        line_file.append_text(bucket / "names.txt", f"{name}\n")
    assert (bucket / "names.txt").read_text() == "a\nb\n"


def test_what_is_not_finite_is_null_at_any_depth():
    values = {
        "auc": math.nan,
        "n": 3,
        "sets": {"a": {"loss": math.inf, "auc": 0.5}},
        "ci": [-math.inf],
    }
    assert line_file.finite(values) == {
        "auc": None, "n": 3, "sets": {"a": {"loss": None, "auc": 0.5}}, "ci": [None]
    }  # fmt: skip


def test_lines_on_a_disk_are_there_at_once(tmp_path):
    lines = line_file.LineFile(epath.Path(tmp_path) / "lines.jsonl", [])
    lines.append({"step": 1})
    assert (tmp_path / "lines.jsonl").read_text() == '{"step": 1}\n'
