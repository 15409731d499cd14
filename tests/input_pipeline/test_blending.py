import io

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline import blending, demo
from input_pipeline.batches import train_batches
from input_pipeline.decode import decode
from input_pipeline.sources import open_source
from input_pipeline.transforms import Transform
from tests.pictures import write_set


@pytest.fixture(scope="module")
def face():
    """[128, 128, 3] uint8, a drawn portrait."""
    data, _ = demo.draw_jpeg(7, 1)
    return np.ascontiguousarray(cv2.resize(decode(data), (128, 128)))


def rng(seed):
    return np.random.default_rng(seed)


def test_a_mask_is_soft_and_covers_part_of_the_middle():
    for seed in range(20):
        mask = blending.mask(128, rng(seed))
        assert mask.min() >= 0 and mask.max() <= 1
        assert 0.005 < mask.mean() < 0.7
        corners = [mask[y, x] for y in (0, -1) for x in (0, -1)]
        assert max(corners) < 0.05  # nobody's face
        assert ((mask > 0.05) & (mask < 0.95)).any()


def test_a_blend_changes_a_part_of_the_picture_and_keeps_its_content(face):
    changes = [np.abs(blending.blend(face, rng(seed)).astype(int) - face) for seed in range(20)]
    assert all(change.max() > 8 for change in changes)
    assert all(change.mean() < 30 for change in changes)
    # In half of them the outside is the untouched one.
    untouched = [change[:4].max() == 0 for change in changes]
    assert 3 <= sum(untouched) <= 17


def test_a_reconstruction_changes_detail_everywhere_alike(face):
    """A frame around the picture would tell all fakes of this kind at a glance."""
    noisy = np.clip(face + rng(0).normal(0, 12, face.shape), 0, 255).astype(np.uint8)
    for seed in range(20):
        change = np.abs(blending.reconstruct(noisy, rng(seed)).astype(int) - noisy).mean(2)
        frame = np.concatenate([change[:3].ravel(), change[-3:].ravel()]).mean()
        assert 2 < change.mean() < 25
        assert frame < 1.7 * change[8:-8].mean()


def test_the_same_numbers_make_the_same_fake(face):
    first, second, other = face.copy(), face.copy(), face.copy()
    for pixels, seed in ((first, 1), (second, 1), (other, 2)):
        blending.make_fake(pixels, rng(seed))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def take(source, *, blended=0.0, webp=0.0, start=0, count=3, index=0, of=1):
    with train_batches(
        source,
        Transform(size=32, shorter_px=37, crop="resize"),
        batch_size=8,
        seed=5,
        start=start,
        process_index=index,
        process_count=of,
        blended=blended,
        webp=webp,
    ) as batches:
        return [{k: v.copy() for k, v in next(batches).items()} for _ in range(count)]


def test_fakes_are_replaced_by_changed_real_pictures(tmp_path):
    source = open_source(write_set(tmp_path, per_class=6), "Train")
    plain, blended = take(source, blended=0.0), take(source, blended=1.0)
    for before, after in zip(plain, blended, strict=True):
        np.testing.assert_array_equal(after["label"], before["label"])
        np.testing.assert_array_equal(source.labels[after["index"]], 1)  # made of real pictures
        real = before["label"] == 1
        np.testing.assert_array_equal(after["image"][real], before["image"][real])
        np.testing.assert_array_equal(after["index"][real], before["index"][real])


def test_the_share_is_what_was_asked_for(tmp_path):
    source = open_source(write_set(tmp_path, per_class=6), "Train")
    batches = take(source, blended=0.3, count=80)
    made = [(source.labels[batch["index"]] == 1)[batch["label"] == 0].mean() for batch in batches]
    assert np.mean(made) == pytest.approx(0.3, abs=0.08)


def test_a_share_of_both_classes_is_compressed_as_pillow_does(tmp_path):
    source = open_source(write_set(tmp_path, per_class=6), "Train")
    plain, damaged = take(source, count=60), take(source, webp=0.3, count=60)
    pictures = [np.concatenate([batch["image"] for batch in part]) for part in (plain, damaged)]
    labels = np.concatenate([batch["label"] for batch in plain])
    changed = (pictures[0] != pictures[1]).any(axis=(1, 2, 3))
    for label in (0, 1):
        assert changed[labels == label].mean() == pytest.approx(0.3, abs=0.08)
    for before, after in list(zip(*pictures, strict=True))[:200]:
        if (before != after).any():
            nearest = min(np.abs(after - saved_as_webp(before, q)).mean() for q in range(30, 96))
            assert nearest < 0.5


def saved_as_webp(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"), np.float32)


def test_blended_batches_depend_on_the_position_alone(tmp_path):
    source = open_source(write_set(tmp_path, per_class=6), "Train")
    whole = take(source, blended=0.5, webp=0.5)
    later = take(source, blended=0.5, webp=0.5, start=2, count=1)[0]
    halves = [take(source, blended=0.5, webp=0.5, index=i, of=2) for i in range(2)]
    for name in ("image", "label", "index"):
        np.testing.assert_array_equal(later[name], whole[2][name])
        for k in range(3):
            both = np.concatenate([half[k][name] for half in halves])
            np.testing.assert_array_equal(both, whole[k][name])
