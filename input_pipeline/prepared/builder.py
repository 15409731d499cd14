"""The prepared set as a TFDS dataset: ArrayRecord shards that hold the files' own bytes.

Written and read without TensorFlow. The records are in the order of the image folder, so a run sees
the same batches from either.
"""

import contextlib
import dataclasses
import functools
import glob
import io
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import psutil
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer, shuffle
from tensorflow_datasets.core.utils import shard_utils

from input_pipeline.cli import UserError
from input_pipeline.sources import Source

NAME = "deepfake_faces"
VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Split:
    """The pictures of one split that go into the set, in order."""

    source: Source
    keep: Sequence[int]  # positions in `source`
    n_bytes: int  # of all their files
    record_bytes: int = 0  # of their records; for `write_shards` of `DeepfakeFaces`

    def ids(self) -> list[str]:
        return [self.source.ids[i] for i in self.keep]

    def labels(self) -> list[int]:
        return [int(self.source.labels[i]) for i in self.keep]

    def groups(self) -> list[str] | None:
        groups = self.source.groups
        return None if groups is None else [groups[i] for i in self.keep]


class DeepfakeFaces(tfds.core.GeneratorBasedBuilder):
    """Faces, 0 fake and 1 real, as encoded pictures.

    `metadata.json` also holds the ids, labels and groups of every split, so that a reader need not
    go through the records.
    """

    name = NAME
    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        *,
        data_dir: str,
        splits: dict[str, Split],
        facts: dict,
        on_written: Callable[[], None],
        write_shards: Callable[[Split, Sequence[tuple[str, int, int]]], None] | None = None,
    ):
        """
        Args:
            data_dir: where to write; the set goes to data_dir/deepfake_faces/1.0.0.
            splits: split name ("Train") to pictures; an empty split is left out.
            facts: kept in metadata.json beside the splits: JSON values.
            on_written: called after each picture.
            write_shards: writes the shards of a split, given (path, first, stop) of each; None:
                `write` writes them. The shards are the same.
        """
        self._splits = {name.lower(): split for name, split in splits.items() if split.keep}
        self._facts = facts
        self._on_written = on_written
        self._write_shards = write_shards
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        splits = {
            name: {"ids": split.ids(), "labels": split.labels(), "groups": split.groups()}
            for name, split in self._splits.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Face pictures, real or fake, written by input_pipeline.prepare.",
            features=_features(),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the folder's order
            metadata=tfds.core.MetadataDict(**self._facts, splits=splits),
        )

    def _generate_splits(self, dl_manager, download_config):
        if self._write_shards is None:
            return super()._generate_splits(dl_manager, download_config)
        return [self._generate_shards(name, split) for name, split in self._splits.items()]

    def _generate_shards(self, name: str, split: Split) -> tfds.core.SplitInfo:
        """Cuts a split into shards as TFDS does; the records keep their order."""
        template = self._get_filename_template(split_name=name)
        count = shard_utils.ShardConfig().get_number_shards(split.record_bytes, len(split.keep))
        edges = [0, *shard_utils.get_shard_boundaries(len(split.keep), count)]
        shards = [
            (os.fspath(template.sharded_filepath(shard_index=i, num_shards=count)), *span)
            for i, span in enumerate(itertools.pairwise(edges))
        ]
        self._write_shards(split, shards)
        return tfds.core.SplitInfo(
            name=name,
            shard_lengths=[stop - start for start, stop in itertools.pairwise(edges)],
            num_bytes=split.record_bytes,
            filename_template=template,
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(split) for name, split in self._splits.items()}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict]]:
        groups = split.groups()
        for key, position in enumerate(split.keep):
            yield (
                key,
                {
                    "image": split.source.encoded(position),
                    "label": int(split.source.labels[position]),
                    "id": split.source.ids[position],
                    "group": groups[key] if groups else "",
                },
            )
            self._on_written()

    def write(self) -> None:
        """Writes the set atomically: TFDS works in a temporary folder and renames it.

        Raises:
            UserError: a split is larger than the free memory.
            OSError: a file could not be read, or the disk is full.
        """
        if self._write_shards is None:
            self._check_memory()
        shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
        tfds.disable_progress_bar()
        # TFDS also prints about downloads that do not happen, and makes an empty folder for them.
        with tempfile.TemporaryDirectory() as nothing, contextlib.redirect_stdout(io.StringIO()):
            self.download_and_prepare(file_format="array_record", download_dir=nothing)

    def _check_memory(self) -> None:
        # TFDS collects a split before it writes shards: up to 1 GB in memory, the rest in temporary
        # files that it can only open through TensorFlow. So keep everything in memory.
        largest = max(self._splits, key=lambda name: self._splits[name].n_bytes)
        need, free = self._splits[largest].n_bytes, psutil.virtual_memory().available
        if need * 1.1 > free:
            raise UserError(
                f"split {largest} is {need / 2**30:.1f} GiB and has to fit into memory while it is "
                f"written; {free / 2**30:.1f} GiB are free (training reads the folder as well)"
            )


def _features() -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["fake", "real"]),
            "id": tfds.features.Text(),
            "group": tfds.features.Text(),
        }
    )


@functools.cache
def _serializer() -> tuple[tfds.features.FeaturesDict, example_serializer.Serializer]:
    features = _features()
    return features, example_serializer.ExampleSerializer(features.get_serialized_info())


def record(image: bytes, label: int, id: str, group: str) -> bytes:
    """The record of a picture, as TFDS writes it."""
    features, serializer = _serializer()
    example = {"image": image, "label": label, "id": id, "group": group}
    return serializer.serialize_example(features.encode_example(example))


def write_shard(path: str, part: Source, groups: Sequence[str] | None) -> None:
    """Writes the pictures of `part` as one shard. Raises OSError if one cannot be read any more."""
    for draft in glob.glob(f"{glob.escape(path)}.*"):  # of a process that was killed
        os.unlink(draft)
    draft = f"{path}.{os.getpid()}"
    writer = array_record_module.ArrayRecordWriter(draft, "group_size:1")  # as TFDS writes them
    for i, name in enumerate(part.ids):
        group = groups[i] if groups else ""
        writer.write(record(part.encoded(i), int(part.labels[i]), name, group))
    writer.close()
    os.replace(draft, path)
