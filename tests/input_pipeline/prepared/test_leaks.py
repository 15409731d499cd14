import cv2
import numpy as np
import pytest

from input_pipeline.prepared import leak_report, leaks
from input_pipeline.prepared.leak_report import Picture


def encoded(pixels: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def scene(seed: int, size: int = 96) -> np.ndarray:
    """A smooth random picture, [size, size, 3] uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def near(duplicates: leaks.Duplicates) -> list[list[int]]:
    return duplicates.near.tolist()


@pytest.mark.parametrize("max_distance", [0, 3, 5, 8])
def test_pairs_within_finds_what_comparing_all_pairs_finds(max_distance):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, 300, np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (9, 300)).astype(np.uint64)
    near_base = [base ^ np.bitwise_xor.reduce(flips[:k], axis=0) for k in range(1, 10)]
    hashes = np.concatenate([base, *near_base])
    left, right = np.triu_indices(len(hashes), 1)
    close = np.bitwise_count(hashes[left] ^ hashes[right]) <= max_distance
    expected = np.stack([left[close], right[close]], axis=1)
    assert len(expected) > 0
    np.testing.assert_array_equal(leaks.pairs_within(hashes, max_distance), expected)


def test_pairs_within_holds_for_no_hashes_and_for_more_than_a_block_of_candidates(monkeypatch):
    assert leaks.pairs_within(np.empty(0, np.uint64), 8).shape == (0, 2)
    monkeypatch.setattr(leaks, "_BLOCK", 50)
    assert len(leaks.pairs_within(np.full(40, 7, np.uint64), 8)) == 40 * 39 // 2


def test_a_copy_that_was_reencoded_or_resized_is_a_near_copy_and_another_picture_is_none():
    pictures = [
        encoded(scene(1)),
        encoded(scene(1), quality=40),
        encoded(cv2.resize(scene(1), (61, 61), interpolation=cv2.INTER_AREA)),
        encoded(scene(2)),
    ]
    found = leaks.find_duplicates([leaks.fingerprint(data) for data in pictures])
    assert near(found) == [[0, 1], [0, 2], [1, 2]]
    assert found.exact == []
    assert (found.correlation >= leaks.MIN_CORRELATION).all()


def test_equal_files_are_exact_copies_and_stand_for_each_other_among_the_near_ones():
    data, again = encoded(scene(1)), encoded(scene(1), quality=40)
    found = leaks.find_duplicates([leaks.fingerprint(d) for d in (data, again, data, again)])
    assert found.exact == [[0, 2], [1, 3]]
    assert near(found) == [[0, 1]]
    assert ([0, 2], [1, 3]) in list(found.linked())


def test_one_hash_and_another_picture_is_no_copy():
    # A checkerboard of single thumbnail cells is beyond the 8×8 lowest waves that the hash sees.
    board = np.indices((32, 32)).sum(axis=0) % 2 * 120 - 60
    board = np.kron(board, np.ones((3, 3)))[:, :, None]
    busy = np.clip(scene(1).astype(int) + board, 0, 255).astype(np.uint8)
    prints = [leaks.fingerprint(encoded(pixels, 100)) for pixels in (scene(1), busy)]
    assert (prints[0].phash ^ prints[1].phash).bit_count() <= leaks.MAX_DISTANCE
    assert near(leaks.find_duplicates(prints)) == []


def test_flat_pictures_are_counted_and_not_compared():
    black = [np.full((64, 64, 3), level, np.uint8) for level in (0, 0, 3)]
    found = leaks.find_duplicates([leaks.fingerprint(encoded(pixels)) for pixels in black])
    assert found.exact == [[0, 1]]
    assert found.flat == [0, 2]
    assert near(found) == []


def test_the_report_names_the_groups_that_stand_in_several_splits():
    pictures = [
        Picture("Train/Fake/0.jpg", "Train", 0, "both"),
        Picture("Train/Real/0.jpg", "Train", 1, "train alone"),
        Picture("Train/Real/1.jpg", "Train", 1, "train alone"),
        Picture("Test/Fake/0.jpg", "Test", 0, "both"),
        Picture("Validation/Real/0.jpg", "Validation", 1, "also both"),
        Picture("Test/Real/0.jpg", "Test", 1, "also both"),
        Picture("Validation/Fake/0.jpg", "Validation", 0, None),
        Picture("Test/Fake/1.jpg", "Test", 0, None),
    ]
    prints = [leaks.fingerprint(encoded(scene(seed))) for seed in range(len(pictures))]
    found = leaks.find_duplicates(prints)
    facts = leak_report.report(pictures, found, unreadable=[], dropped=False)
    assert facts["groups_in_several_splits"] == ["also both", "both"]
    assert "- Groups (source videos) in more than one split: 2\n" in leak_report.page(facts)
