"""Combines several sets for training: their pictures, and the order in which they are drawn.

The order is a pure function of (seed, position), like that of a single set. Every block of `BLOCK`
positions contains each cell (the pictures of one class of one set) a fixed number of times.
"""

import collections
import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.cli import UserError

BLOCK = 1024  # positions; a cell's share is accurate to half of 1 / BLOCK


class Mixture:
    """Several `sources.Source`s, one after the other.

    Attributes:
        names: of the sets, short and unique.
        passed_over: files that are not pictures, by extension.
        set_of: [N] int32, the set of each picture, an index into `names`.
        labels, ids, groups: as in `sources.Source`; ids begin with the set's name. `groups` is None
            unless every set has groups.
    """

    def __init__(self, names: Sequence[str], parts: Sequence):
        self.names, self._parts = list(names), list(parts)
        sizes = [len(part) for part in parts]
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self.set_of = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
        self.labels = np.concatenate([np.asarray(part.labels) for part in parts])
        passed_over = (getattr(part, "passed_over", {}) for part in parts)
        self.passed_over = dict(sum(map(collections.Counter, passed_over), collections.Counter()))
        self.ids = [
            f"{name}/{i}" for name, part in zip(names, parts, strict=True) for i in part.ids
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> np.ndarray:
        part, place = self._find(i)
        return part.read(place)

    def encoded(self, i: int) -> bytes:
        part, place = self._find(i)
        return part.encoded(place)

    def stamp(self, i: int) -> bytes:
        part, place = self._find(i)
        return part.stamp(place)

    def _find(self, i: int) -> tuple:
        """The source of picture `i`, and its index there."""
        part = self.set_of[i]
        return self._parts[part], int(i - self._first[part])

    @functools.cached_property
    def groups(self) -> list[str] | None:
        groups = [part.groups for part in self._parts]
        if any(group is None for group in groups):
            return None
        return [f"{name}/{g}" for name, part in zip(self.names, groups, strict=True) for g in part]


class Order:
    """Maps positions to pictures of a mixture.

    Args:
        mixture: the pictures.
        seed: of the order, 0 to 2**32 - 1.
        weights: one number per set: how often its pictures are drawn relative to the others';
            empty: the square roots of the sizes of the sets.
        balance: draw both classes equally often, whatever the sets contain.
        blended: share of the fakes that are made from photographs, see `photographs`.
    """

    def __init__(
        self,
        mixture: Mixture,
        seed: int,
        weights: Sequence[float],
        balance: bool,
        blended: float = 0.0,
    ):
        sizes = np.bincount(mixture.set_of, minlength=len(mixture.names))
        if weights and len(weights) != len(sizes):
            raise UserError(
                f"config.data.weights has {len(weights)} numbers, but config.data.dir names"
                f" {len(sizes)} sets: give one number a set, or () for square roots of their sizes"
            )
        of_set = np.asarray(weights or np.sqrt(sizes), float)
        cells = [
            (s, label, np.flatnonzero((mixture.set_of == s) & (mixture.labels == label)))
            for s in range(len(sizes))
            for label in (0, 1)
        ]
        cells = [cell for cell in cells if len(cell[2]) and of_set[cell[0]] > 0]
        if {label for _, label, _ in cells} != {0, 1}:
            raise UserError(
                "config.data.weights leaves only one class: give a set of the other one more than 0"
            )
        shares = np.array([of_set[s] * (1 if balance else len(i) / sizes[s]) for s, _, i in cells])
        if balance:
            labels = np.array([label for _, label, _ in cells])
            shares /= np.bincount(labels, shares, minlength=2)[labels]
        self._members = [indices for _, _, indices in cells]
        forged = {s for s, label, _ in cells if label == 0}
        reals = np.array([x * label for x, (_, label, _) in zip(shares, cells, strict=True)])
        reals /= reals.sum()
        lone = reals * [s not in forged for s, _, _ in cells]
        # More fakes than photographs of one look would mean that it is a fake's.
        taken = lone + max(0, blended - lone.sum()) * reals
        self._photograph_ends = np.cumsum(taken) / (taken.sum() or 1)
        self._counts = _apportion(shares / shares.sum())
        self._cell = np.repeat(np.arange(len(cells)), self._counts)
        self._rank = np.concatenate([np.arange(count) for count in self._counts])
        self._seed = seed

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """[...] int64 positions, from 0 -> [...] int32 indices into the mixture."""
        blocks, slots = np.divmod(positions, BLOCK)
        indices = np.empty(positions.shape, np.int32)
        for block in np.unique(blocks):
            here = blocks == block
            drawn = _permutation(self._seed, 0, int(block), BLOCK)[slots[here]]
            indices[here] = [
                self._pick(self._cell[j], int(block) * self._counts[self._cell[j]] + self._rank[j])
                for j in drawn
            ]
        return indices

    def photographs(self, draws: np.ndarray) -> np.ndarray:
        """[n] uniform draws in [0, 1) -> [n] int32 indices of photographs to make fakes of.

        First for the sets that have no fakes of their own, until these have as many fakes as
        photographs: otherwise the look of such a set would mean "real", and fakes that look like
        it would never be found (docs/MODEL_CARD.md has what that is worth). The others are made
        from all sets, each as often as batches hold it.
        """
        ends = self._photograph_ends
        cells = np.searchsorted(ends, draws, side="right")
        starts = np.append(0.0, ends)[cells]
        within = np.minimum((draws - starts) / (ends[cells] - starts), np.nextafter(1, 0))
        members = [self._members[cell] for cell in cells]
        return np.array(
            [m[int(w * len(m))] for m, w in zip(members, within, strict=True)], np.int32
        )

    def _pick(self, cell: int, count: int) -> int:
        """The picture that a cell gives at its draw number `count`: each once in every round."""
        members = self._members[cell]
        epoch, place = divmod(int(count), len(members))
        return members[_permutation(self._seed, int(cell) + 1, epoch, len(members))[place]]


def _apportion(shares: np.ndarray) -> np.ndarray:
    """The number of `BLOCK` positions for each share, by largest remainders; at least one."""
    counts = np.maximum(1, np.floor(shares * BLOCK).astype(int))
    remainders = shares * BLOCK - counts
    while (left := BLOCK - counts.sum()) != 0:
        i = np.argmax(remainders) if left > 0 else np.argmin(np.where(counts > 1, remainders, 2))
        counts[i] += np.sign(left)
        remainders[i] -= np.sign(left)
    return counts


@functools.lru_cache(maxsize=256)
def _permutation(seed: int, cell: int, number: int, n: int) -> np.ndarray:
    # The high half of the key's first word keeps these streams apart from a single set's.
    bits = np.random.Philox(key=[seed | (cell + 1) << 32, number]).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int32)


def is_mixture(data_dir: str) -> bool:
    """Whether `data_dir` names several sets; a folder may have a comma in its name."""
    return "," in data_dir and not os.path.isdir(os.path.expanduser(data_dir))


def of(
    data_dir: str,
    split: str,
    has_split: Callable[[str, str], bool],
    open_one: Callable,
    *,
    one_class: bool = False,
) -> Mixture:
    """The pictures of one split of the sets that `data_dir` names, separated by commas.

    Args:
        split: "Train", which every set must have, or another one; sets without it are left out.
        has_split: tells whether the set in a folder has a split.
        open_one: opens the source of a folder and split; it may have only one class.
        one_class: accept sets that have only one class between them.

    Raises:
        UserError: a set is named twice or not at all, no set has this split, or the whole has one
            class only.
    """
    found = paths(data_dir)
    chosen = [
        (name, open_one(path, split))
        for name, path in zip(_short_names(found), found, strict=True)
        if split == "Train" or has_split(path, split)
    ]
    if not chosen:
        raise UserError(f"data.dir={data_dir}: none of these sets has a {split} folder")
    mixture = Mixture(*zip(*chosen, strict=True))
    for label, name in enumerate(("Fake", "Real")):
        if not one_class and not (mixture.labels == label).any():
            raise UserError(
                f"data.dir={data_dir}: no {name} picture in the {split} of any set;"
                " add a set that has some"
            )
    return mixture


def paths(data_dir: str) -> list[str]:
    """The sets that `data_dir` names. Raises UserError for an empty name, or the same set twice."""
    found = [path.strip() for path in data_dir.split(",")]
    if "" in found:
        raise UserError(f"data.dir={data_dir}: an empty name between commas; expected A,B,C")
    seen: dict[str, str] = {}
    for path in found:
        real = os.path.realpath(os.path.expanduser(path))
        if real in seen:
            raise UserError(f"data.dir={data_dir}: {path} is named twice; name every set once")
        seen[real] = path
    return found


def _short_names(paths: Sequence[str]) -> list[str]:
    """The last folders of each path, as many as are needed to make the names differ."""
    parts = [os.path.normpath(path).split(os.sep) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names
