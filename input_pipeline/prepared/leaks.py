"""Finds copies of a picture within a set, above all copies in another split.

A copy of a Test picture in Train makes the Test figures too good. Byte-equal copies are found by
their digest, near copies (re-encoded, resized, the next frame of a video) in two stages: a
perceptual hash finds candidates, and small thumbnails of both decide. The hash alone does not
suffice: aligned faces share their low frequencies, and on 30,000 DFDC crops 27,000 pairs lie within
8 of 64 bits, most of them of different people.
"""

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator

import cv2
import imagehash
import numpy as np
from PIL import Image

from input_pipeline.cli import printable
from input_pipeline.decode import DecodeError, decode
from input_pipeline.sources import Source

# Chosen by looking at pairs of two real sets (DFDC crops, FFHQ): above 0.97 nearly all show one
# scene; around 0.95 some show the same person at another time. A doubtful pair counts as a copy: a
# training picture left out costs little, but a remaining leak spoils the result.
MAX_DISTANCE = 8  # bits of 64
MIN_CORRELATION = 0.97
THUMBNAIL_PX = 32
MIN_CONTRAST = 4.0  # standard deviation of the thumbnail, of 255; flatter ones all look alike

_CHUNK_BITS = 16
_CHUNKS = 64 // _CHUNK_BITS
_BLOCK = 1 << 22  # candidate pairs compared at once: about 200 MiB


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Data to compare a picture with 200,000 others: 1.1 kB."""

    digest: bytes  # of the file's bytes: equal digests are one file
    phash: int  # 64 bits
    thumbnail: np.ndarray  # [32, 32] uint8, grey


def fingerprint(data: bytes) -> Fingerprint:
    """Fingerprint of an encoded picture. Raises DecodeError if training would leave it out."""
    pixels = decode(data)
    # Shrink it before turning it grey: this takes a tenth of the time for large pictures.
    small = cv2.resize(pixels, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    thumbnail = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    bits = imagehash.phash(Image.fromarray(thumbnail)).hash  # [8, 8] bool
    return Fingerprint(
        digest=hashlib.blake2b(data, digest_size=16).digest(),
        phash=int.from_bytes(np.packbits(bits).tobytes(), "big"),
        thumbnail=thumbnail,
    )


def examine(source: Source, i: int) -> tuple[bytes, Fingerprint] | str:
    """The file of a picture and its fingerprint, or why the picture is left out."""
    if printable(source.ids[i]) != source.ids[i]:
        return "its name is not UTF-8"
    try:
        data = source.encoded(i)
        return data, fingerprint(data)
    except (DecodeError, OSError) as error:
        return " ".join(str(error).split())


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """All copies in a set of N pictures, as positions in the list of fingerprints.

    Attributes:
        exact: groups of two or more byte-equal files, each ascending.
        near: [M, 2] int64 pairs, left < right; of byte-equal files, only the first occurs.
        distance: [M] Hamming distance of the two hashes, in bits.
        correlation: [M] of the two thumbnails, at most 1.
        flat: pictures without enough contrast to be compared; only `exact` covers them.
    """

    exact: list[list[int]]
    near: np.ndarray
    distance: np.ndarray
    correlation: np.ndarray
    flat: list[int]

    def linked(self) -> Iterator[tuple[list[int], list[int]]]:
        """Pairs of groups; every picture of one is a copy of every picture of the other."""
        group_of = {group[0]: group for group in self.exact}
        for group in self.exact:
            yield group, group
        for left, right in self.near.tolist():
            yield group_of.get(left, [left]), group_of.get(right, [right])


def find_duplicates(prints: list[Fingerprint]) -> Duplicates:
    """All exact and near copies among `prints`."""
    same = defaultdict(list)
    for position, item in enumerate(prints):
        same[item.digest].append(position)
    exact = [group for group in same.values() if len(group) > 1]

    firsts = np.array([group[0] for group in same.values()], np.int64)
    thumbnails = np.array([prints[i].thumbnail for i in firsts], np.uint8).reshape(len(firsts), -1)
    contrast = np.array([t.std() for t in thumbnails])
    flat = firsts[contrast < MIN_CONTRAST].tolist()
    firsts, thumbnails = firsts[contrast >= MIN_CONTRAST], thumbnails[contrast >= MIN_CONTRAST]

    hashes = np.array([prints[i].phash for i in firsts], np.uint64)
    pairs = pairs_within(hashes, MAX_DISTANCE)
    correlation = correlation_of(thumbnails, pairs)
    keep = correlation >= MIN_CORRELATION
    pairs, correlation = pairs[keep], correlation[keep]
    return Duplicates(
        exact=exact,
        near=firsts[pairs],
        distance=np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]),
        correlation=correlation,
        flat=flat,
    )


def pairs_within(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """All pairs of 64-bit hashes that differ in at most `max_distance` bits.

    Multi-index hashing (Norouzi, Punjani, Fleet: "Fast exact search in Hamming space with
    multi-index hashing", TPAMI 2014). The hash is cut into four chunks of 16 bits. With
    max_distance = 4 r + a, every such pair agrees to within r bits in one of the first a + 1 chunks
    or to within r - 1 bits in one of the others, so only those neighbourhoods are looked up: 188
    of 65,536 buckets at 8 bits. For n evenly spread hashes that is 188 n look-ups and about
    n² / 700 candidates, out of n² / 2 pairs. Hashes crowded into few buckets cost more, at worst
    all pairs. Memory is bounded. 190,000 hashes take seconds.

    Args:
        hashes: [N] uint64.

    Returns:
        [M, 2] int64, left < right, sorted, every pair once.
    """
    radius, rest = divmod(max_distance, _CHUNKS)
    found = [np.empty(0, np.int64)]
    for chunk in range(_CHUNKS):
        # Chunk 0 holds the highest frequencies, in which faces differ most: its buckets are small.
        shifted = hashes >> np.uint64(_CHUNK_BITS * chunk)
        keys = (shifted & np.uint64((1 << _CHUNK_BITS) - 1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        start = np.searchsorted(keys[order], np.arange((1 << _CHUNK_BITS) + 1))
        for flips in _masks(radius if chunk <= rest else radius - 1):
            first, last = start[keys ^ flips], start[(keys ^ flips) + 1]
            for left, slot in expand(first, last):
                right = order[slot]
                near = left < right
                left, right = left[near], right[near]
                near = np.bitwise_count(hashes[left] ^ hashes[right]) <= max_distance
                found.append(left[near] * len(hashes) + right[near])
    pairs = np.unique(np.concatenate(found))
    return np.stack(np.divmod(pairs, max(len(hashes), 1)), axis=1)


def _masks(radius: int) -> Iterator[int]:
    """All 16-bit numbers with at most `radius` bits set."""
    for count in range(radius + 1):
        for bits in itertools.combinations(range(_CHUNK_BITS), count):
            yield sum(1 << bit for bit in bits)


def expand(first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Expands ranges first[i]:last[i] to blocks of (i, element), about _BLOCK elements each."""
    counts = last - first
    ends = np.cumsum(counts)
    row = 0
    while row < len(counts):
        done = ends[row - 1] if row else 0
        stop = max(row + 1, int(np.searchsorted(ends, done + _BLOCK, side="right")))
        block = counts[row:stop]
        left = np.repeat(np.arange(row, stop), block)
        inside = np.arange(len(left)) - np.repeat(np.cumsum(block) - block, block)
        yield left, first[left] + inside
        row = stop


def correlation_of(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[M] Pearson correlation of the thumbnails ([N, P] uint8) of each pair ([M, 2])."""
    result = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), 8192):
        block = thumbnails[pairs[start : start + 8192]].astype(np.float32)  # [m, 2, P]
        block -= block.mean(axis=2, keepdims=True)
        block /= np.linalg.norm(block, axis=2, keepdims=True)
        result[start : start + 8192] = np.sum(block[:, 0] * block[:, 1], axis=1)
    return result
