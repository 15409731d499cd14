"""What files give away, on files made to give it away."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline.sources import FileSource
from mnv4_jax.measure import audit


def encoded(quality=75, size=(40, 30), blur=False, seed=0, form="JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
    if blur:
        pixels = np.full_like(pixels, pixels.mean())
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, quality=quality)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    """Two fakes, small, at quality 50 and flat; two reals, at 90; a PNG and a broken file."""
    contents = [
        encoded(50, blur=True),
        encoded(50, blur=True, seed=1),
        encoded(90),
        encoded(90, size=(60, 30), seed=1),
        encoded(form="PNG"),
        b"broken",
    ]
    paths = [tmp_path / f"{i}" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return FileSource(paths, [0, 0, 1, 1, 1, 0], ids=[str(i) for i in range(len(paths))])


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 92, 100])
def test_jpeg_quality_is_what_it_was_saved_with(quality):
    assert audit.jpeg_quality(encoded(quality)) == quality


def test_other_formats_have_no_jpeg_quality():
    assert np.isnan(audit.jpeg_quality(encoded(form="PNG")))
    assert np.isnan(audit.jpeg_quality(b"\xff\xd8 broken"))


def test_files_are_measured(source):
    _, features = audit.inspect(source)
    assert features["file_size"][0] == len(source.encoded(0))
    assert features["width"].tolist()[:5] == [40, 40, 40, 60, 40]
    assert features["height"].tolist()[:5] == [30] * 5
    assert features["sharpness"][0] == 0 < features["sharpness"][2]
    assert features["brightness"][2] == pytest.approx(127.5, abs=5)
    assert all(np.isnan(values[5]) for values in features.values())


def test_shortcuts_show(source):
    labels = np.asarray(source.labels)
    rows = audit.shortcuts(labels, audit.inspect(source)[1], None)
    assert rows["jpeg_quality"]["auc"]["value"] == 0  # fakes always lower
    assert rows["jpeg_quality"]["n"] == 4
    assert rows["file_size"]["auc"]["value"] == 0
    assert rows["width"]["auc"]["value"] == pytest.approx((2 * 2 * 0.5) / 6)
    assert (rows["width"]["median_fake"], rows["width"]["median_real"]) == (40, 40)


def test_a_class_without_the_property_has_no_auc(source):
    features = {"jpeg_quality": np.array([np.nan, np.nan, 90, 90])}
    row = audit.shortcuts(np.array([0, 0, 1, 1]), features, None)["jpeg_quality"]
    assert row["auc"] is None
    assert row["median_fake"] is None


def test_the_digest_is_of_names_and_contents(source, tmp_path):
    digest, _ = audit.inspect(source)
    assert audit.inspect(source)[0] == digest
    (tmp_path / "4").write_bytes(encoded(form="PNG", seed=9))
    assert audit.inspect(source)[0] != digest
