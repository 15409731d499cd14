import numpy as np

from input_pipeline import gather


def test_crops_are_pieces_of_their_pictures_natively_and_with_numpy():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    index, top, left = np.array([4, 0, 2]), np.array([0, 5, 3]), np.array([5, 0, 4])
    starts = index * 12 * 12 * 3 + 3 * (top * 12 + left)
    strides, places = np.full(3, 36), np.array([0, 3, 2])
    assert gather._native() is not None  # this machine has a compiler
    for copy in (gather.gather, gather.with_numpy):
        out = np.zeros((4, 7, 7, 3), np.uint8)
        copy(pixels.reshape(-1), starts, strides, places, out)
        for place, i, y, x in zip(places, index, top, left, strict=True):
            np.testing.assert_array_equal(out[place], pixels[i, y : y + 7, x : x + 7])
        assert not out[1].any()


def test_without_a_compiler_it_is_numpy(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr("input_pipeline.compiled._processor", lambda: "another one")
    gather._native.cache_clear()
    try:
        out = np.zeros((1, 2, 2, 3), np.uint8)
        gather.gather(np.arange(12, dtype=np.uint8), *np.array([[0], [6], [0]]), out)
        np.testing.assert_array_equal(out.ravel(), np.arange(12))
        assert "with NumPy" in caplog.text
    finally:
        gather._native.cache_clear()
