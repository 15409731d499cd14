"""The prepared set as a TFDS dataset: ArrayRecord shards that hold the files' own bytes.

Written and read without TensorFlow. The records lie in the order of the image folder, so a run sees
the same batches from either.
"""

import contextlib
import dataclasses
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import psutil
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

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

    def ids(self) -> list[str]:
        return [self.source.ids[i] for i in self.keep]

    def labels(self) -> list[int]:
        return [int(self.source.labels[i]) for i in self.keep]

    def groups(self) -> list[str] | None:
        groups = self.source.groups
        return None if groups is None else [groups[i] for i in self.keep]


class DeepfakeFaces(tfds.core.GeneratorBasedBuilder):
    """Faces, 0 fake and 1 real, as encoded pictures.

    `metadata.json` holds the ids, labels and groups of every split a second time, so that a reader
    knows them without going through the records.
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
    ):
        """
        Args:
            data_dir: where to write; the set goes to data_dir/deepfake_faces/1.0.0.
            splits: split name ("Train") to pictures; an empty split is left out.
            facts: kept in metadata.json beside the splits: JSON values.
            on_written: called once a picture.
        """
        self._splits = {name.lower(): split for name, split in splits.items() if split.keep}
        self._facts = facts
        self._on_written = on_written
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        splits = {
            name: {"ids": split.ids(), "labels": split.labels(), "groups": split.groups()}
            for name, split in self._splits.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Face pictures, real or fake, written by input_pipeline.prepare.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["fake", "real"]),
                    "id": tfds.features.Text(),
                    "group": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the folder's order
            metadata=tfds.core.MetadataDict(**self._facts, splits=splits),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(split) for name, split in self._splits.items()}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict]]:
        groups = split.groups()
        for key, position in enumerate(split.keep):
            yield (
                key,
                {
                    "image": split.source.read(position),
                    "label": int(split.source.labels[position]),
                    "id": split.source.ids[position],
                    "group": groups[key] if groups else "",
                },
            )
            self._on_written()

    def write(self) -> None:
        """Writes the set, all or nothing: TFDS works in a temporary folder and renames it.

        Raises:
            UserError: a split is larger than the memory that is free.
            OSError: a file could not be read, or the disk is full.
        """
        # TFDS collects a split before it writes shards: up to 1 GB in memory, more than that in
        # temporary files that it can only open through TensorFlow. So everything stays in memory.
        largest = max(self._splits, key=lambda name: self._splits[name].n_bytes)
        need, free = self._splits[largest].n_bytes, psutil.virtual_memory().available
        if need * 1.1 > free:
            raise UserError(
                f"split {largest} is {need / 2**30:.1f} GiB and has to fit into memory while it is "
                f"written; {free / 2**30:.1f} GiB are free (training reads the folder as well)"
            )
        shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
        tfds.disable_progress_bar()
        # It also prints about downloads that do not happen, and makes an empty folder for them.
        with tempfile.TemporaryDirectory() as nothing, contextlib.redirect_stdout(io.StringIO()):
            self.download_and_prepare(file_format="array_record", download_dir=nothing)
