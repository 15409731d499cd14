"""A set written by `input_pipeline.prepare`, read picture by picture."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from tensorflow_datasets.core.decode import DeserializeMethod
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline import cache
from input_pipeline.cli import UserError
from input_pipeline.decode import decode


class TfdsSource:
    """One split of a prepared set: the `Source` protocol of `sources.py`.

    Ids, labels and groups come from the set's metadata.json; only `encoded` touches the shards.
    """

    def __init__(self, data_dir: str, split: str, one_class: bool = False):
        """
        Args:
            data_dir: the --out of prepare, or the folder with dataset_info.json somewhere below it.
            split: "Train", "Validation" or "Test", in any case.
            one_class: accept a split of one class.

        Raises:
            UserError: no such set or split, only one class, or another program wrote the set.
        """
        self._data_dir, self._split = os.fspath(data_dir), split.lower()
        self._one_class = one_class
        splits = _builder(self._data_dir).info.metadata["splits"]
        if self._split not in splits:
            raise UserError(
                f"data folder {data_dir}: no split {split.capitalize()}; "
                f"the prepared set has {', '.join(name.capitalize() for name in splits)}"
            )
        facts = splits[self._split]
        self.ids: list[str] = facts["ids"]
        self.labels = np.array(facts["labels"], np.int32)
        self.groups: list[str] | None = facts["groups"]
        if len(np.unique(self.labels)) < 2 and not one_class:
            raise UserError(
                f"data folder {data_dir}: split {split.capitalize()} has one class only"
            )

    @staticmethod
    def has_split(data_dir: str, split: str) -> bool:
        """Whether the set in `data_dir` has the split. Raises UserError where there is no set."""
        return split.lower() in _builder(os.fspath(data_dir)).info.metadata["splits"]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        return decode(self.encoded(i))

    def encoded(self, i: int) -> bytes:
        """The encoded picture `i`, with the same bytes as its original file."""
        # TFDS's own decoding of a record takes twice as long (0.15 ms) and holds the GIL.
        try:
            example = tf_example_pb2.Example.FromString(self._records[i])
            return example.features.feature["image"].bytes_list.value[0]
        except (RuntimeError, IndexError, DecodeError) as error:  # missing or damaged shard
            reason = str(error).split("\n", 1)[0]
            raise OSError(f"its shard in {self._data_dir} cannot be read: {reason}") from error

    def stamp(self, i: int) -> bytes:
        """Depends on all shards and on the position of the picture in them."""
        return hashlib.blake2b(self._shards_stamp + i.to_bytes(8), digest_size=16).digest()

    @functools.cached_property
    def _shards_stamp(self) -> bytes:
        folder = pathlib.Path(_builder(self._data_dir).data_dir)
        shards = sorted(folder.glob(f"*-{self._split}.array_record*"))
        return b"".join(cache.stamp(path) for path in shards)

    @functools.cached_property
    def _records(self) -> Sequence[bytes]:
        # Opened on first use, so that every worker process opens the shards for itself.
        return _builder(self._data_dir).as_data_source(
            self._split, deserialize_method=DeserializeMethod.RAW_BYTES
        )

    def __reduce__(self):
        return TfdsSource, (self._data_dir, self._split, self._one_class)


@functools.lru_cache(maxsize=8)
def _builder(data_dir: str) -> tfds.core.DatasetBuilder:
    # DIR, DIR/deepfake_faces and DIR/deepfake_faces/1.0.0 all mean the set.
    found = [
        path
        for pattern in ("", "*/", "*/*/")
        for path in pathlib.Path(data_dir).glob(f"{pattern}dataset_info.json")
        if not path.parent.name.startswith("incomplete.")
    ]
    if len(found) != 1:
        raise UserError(f"data folder {data_dir} holds {len(found)} prepared sets; expected one")
    try:
        builder = tfds.builder_from_directory(found[0].parent)
        builder.info.metadata["splits"]
    except (ValueError, ParseError) as error:  # a truncated or overwritten file
        raise UserError(f"{found[0].parent}: damaged: {str(error).splitlines()[0]}") from None
    except KeyError:
        raise UserError(
            f"{found[0].parent} is a TFDS set of another writer: its metadata.json names no "
            "pictures; make it by input_pipeline.prepare"
        ) from None
    return builder
