"""The position is all there is: the same batches however a run is cut up, every picture once."""

import gc

import numpy as np
import pytest

from input_pipeline.batches import eval_batches, train_batches
from input_pipeline.cli import UserError
from input_pipeline.decode import decode
from input_pipeline.order import draw_table, order
from input_pipeline.sources import FileSource, open_source
from input_pipeline.transforms import Transform
from tests.pictures import encoded, smooth, write_set

CROP = Transform(size=24, shorter_px=27, crop="resize")
WHOLE = Transform(size=40, shorter_px=40, crop="resize")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(write_set(tmp_path_factory.mktemp("set"), per_class=5), "Train")  # 10


def _train(source, n, transform=CROP, **kwargs):
    arguments = {"batch_size": 4, "seed": 3, "threads": 2} | kwargs
    with train_batches(source, transform, **arguments) as batches:
        return [next(batches) for _ in range(n)]


def _equal(a, b):
    assert len(a) == len(b)
    for mine, theirs in zip(a, b, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key])


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_every_epoch_has_every_picture_once_in_another_order(n):
    epochs = order(5, n, np.arange(4 * n)).reshape(4, n)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(n), (4, 1)))
    if n == 1000:
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert not np.array_equal(order(6, n, np.arange(n)), epochs[0])
        assert abs(np.corrcoef(epochs)[np.triu_indices(4, 1)]).max() < 0.1


def test_the_order_of_a_seed_never_changes():
    # Written down so that no new version of a library alters what a resumed run sees.
    assert order(0, 8, np.arange(16)).tolist() == [5, 3, 7, 2, 4, 1, 0, 6, 6, 7, 2, 1, 3, 5, 0, 4]
    draws = draw_table(0, 5, 1)[0, :3]
    np.testing.assert_allclose(draws, [0.8457969, 0.9672681, 0.7881369], atol=1e-7)


def test_the_draws_of_a_position_do_not_depend_on_where_one_starts():
    table = draw_table(7, 0, 50)
    np.testing.assert_array_equal(draw_table(7, 20, 10), table[20:30])
    assert len(np.unique(table)) == table.size and table.min() >= 0 and table.max() < 1
    assert not np.array_equal(draw_table(8, 0, 50), table)


def test_batches_hold_the_pictures_they_name_across_the_end_of_an_epoch(source):
    seen = []
    for k, batch in enumerate(_train(source, 5, WHOLE)):
        np.testing.assert_array_equal(batch["position"], 4 * k + np.arange(4))
        np.testing.assert_array_equal(batch["label"], source.labels[batch["index"]])
        for image, index in zip(batch["image"], batch["index"], strict=True):
            np.testing.assert_array_equal(image, decode(source.encoded(index)))
        seen += batch["index"].tolist()
        types = {key: value.dtype.name for key, value in batch.items()}
        assert types == {"image": "uint8", "label": "int32", "position": "uint32", "index": "int32"}
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]


def test_resumed_at_k_a_run_goes_on_as_if_never_stopped(source):
    whole = _train(source, 7)
    for k in (1, 3, 6):
        _equal(_train(source, 7 - k, start=k), whole[k:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(source, processes):
    whole = _train(source, 4)
    parts = [_train(source, 4, process_index=p, process_count=processes) for p in range(processes)]
    joined = [
        {key: np.concatenate([part[key] for part in batch]) for key in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
    _equal(joined, whole)


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_threads_change_nothing(source, threads):
    _equal(_train(source, 6, threads=threads), _train(source, 6))


@pytest.mark.slow
def test_worker_processes_change_nothing_and_report_bad_pictures(tmp_path):
    data_dir = write_set(tmp_path, per_class=3)
    (tmp_path / "Train/Real/1.jpg").write_bytes(b"")
    source, told = open_source(data_dir, "Train"), []
    with_workers = _train(source, 6, workers=2, start=1, on_bad=lambda *bad: told.append(bad))
    _equal(with_workers, _train(source, 6, start=1))
    assert [name for name, _ in told] == ["Train/Real/1.jpg"]


def test_another_seed_gives_another_order_and_other_crops(source):
    a, b = _train(source, 3), _train(source, 3, seed=4)
    assert not np.array_equal([x["index"] for x in a], [x["index"] for x in b])
    one = FileSource([source._paths[0]], [0])
    crops = np.stack([batch["image"] for batch in _train(one, 2)]).reshape(8, -1)
    assert len(np.unique(crops, axis=0)) >= 5  # of 16 that there are


def test_a_batch_that_is_held_is_not_written_over(source):
    held, copies = [], []
    with train_batches(source, CROP, batch_size=4, seed=0, threads=2) as batches:
        for k in range(40):
            image = next(batches)["image"]
            if k % 3 == 0:
                held.append(image[1:3, 5:][:, ::2])  # a view of a view of a view
                copies.append(held[-1].copy())
            del image
    gc.collect()
    for view, copy in zip(held, copies, strict=True):
        np.testing.assert_array_equal(view, copy)


def test_memory_is_used_again(source):
    with train_batches(source, CROP, batch_size=4, seed=0, threads=2) as batches:
        places = {next(batches)["image"].ctypes.data for _ in range(60)}
    assert len(places) < 12


def test_a_damaged_picture_gives_way_to_the_next_and_is_told_once(tmp_path):
    data_dir = write_set(tmp_path, per_class=3)
    (tmp_path / "Train/Fake/1.jpg").write_bytes(encoded(smooth(40, 40))[:-200])
    (tmp_path / "Train/Real/2.jpg").unlink()
    (tmp_path / "Train/Real/2.jpg").symlink_to("nowhere.jpg")
    source, told = open_source(data_dir, "Train"), []
    assert len(source) == 5  # a dangling link is no file
    (tmp_path / "Train/Real/1.jpg").unlink()  # while the run goes on
    batches = _train(source, 10, on_bad=lambda name, reason: told.append((name, reason)))
    index = np.concatenate([batch["index"] for batch in batches])
    wanted = order(3, 5, np.arange(40))
    np.testing.assert_array_equal(index, np.array([0, 2, 2, 3, 0])[wanted])
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], source.labels[batch["index"]])
    assert sorted(name for name, _ in told) == ["Train/Fake/1.jpg", "Train/Real/1.jpg"]
    assert all(reason for _, reason in told)


def test_nothing_readable_ends_the_run(tmp_path):
    data_dir = write_set(tmp_path, per_class=2)
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(b"\xff\xd8 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        _train(open_source(data_dir, "Train"), 1)


@pytest.mark.parametrize("processes, batch_size", [(1, 4), (2, 4), (4, 4), (1, 10), (2, 64)])
def test_evaluation_sees_every_picture_once_on_equally_many_batches(source, processes, batch_size):
    counts, seen = set(), []
    for p in range(processes):
        with eval_batches(
            source, WHOLE, batch_size=batch_size, process_index=p, process_count=processes
        ) as batches:
            mine = list(batches)
        counts.add(len(mine))
        for batch in mine:
            mask = batch["mask"]
            assert batch["image"].shape == (batch_size // processes, 40, 40, 3)
            np.testing.assert_array_equal(batch["label"][mask], source.labels[batch["index"][mask]])
            assert not batch["image"][~mask].any() and (batch["index"][~mask] == -1).all()
            for image, index in zip(batch["image"][mask], batch["index"][mask], strict=True):
                np.testing.assert_array_equal(image, decode(source.encoded(index)))
            seen += batch["index"][mask].tolist()
    assert counts == {-(-10 // batch_size)} and sorted(seen) == list(range(10))


def test_evaluation_leaves_a_damaged_picture_out_and_tells(tmp_path):
    data_dir = write_set(tmp_path, per_class=2)
    (tmp_path / "Train/Real/0.jpg").write_bytes(b"no picture")
    told = []
    with eval_batches(
        open_source(data_dir, "Train"),
        WHOLE,
        batch_size=4,
        on_bad=lambda name, reason: told.append(name),
    ) as batches:
        (batch,) = batches
    np.testing.assert_array_equal(batch["mask"], [True, True, False, True])
    np.testing.assert_array_equal(batch["index"], [0, 1, 2, 3])
    assert told == ["Train/Real/0.jpg"] and not batch["image"][2].any()


def test_what_is_left_out_is_black_in_memory_used_before(tmp_path):
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    good.write_bytes(encoded(smooth(40, 40)))
    bad.write_bytes(b"")
    files = FileSource([bad if i % 7 == 0 else good for i in range(101)])
    with eval_batches(files, WHOLE, batch_size=4, threads=1) as batches:
        for batch in batches:
            is_black = ~batch["image"].any(axis=(1, 2, 3))
            np.testing.assert_array_equal(is_black, ~batch["mask"])


@pytest.mark.parametrize(("crop", "shorter_px"), [("resize", 64), ("native", 256)])
@pytest.mark.parametrize("side", [56, 40, 64])
def test_what_is_evaluated_is_the_middle_at_the_scale_of_training(tmp_path, crop, shorter_px, side):
    pixels = smooth(64, 64)
    (tmp_path / "a.png").write_bytes(encoded(pixels, "PNG"))
    transform = Transform(size=side, shorter_px=shorter_px, crop=crop)
    with eval_batches(FileSource([tmp_path / "a.png"]), transform, batch_size=1) as batches:
        middle = next(batches)["image"][0]
    border = (64 - side) // 2
    np.testing.assert_array_equal(middle, pixels[border : 64 - border, border : 64 - border])


def test_what_a_caller_may_not_ask_for(source):
    with pytest.raises(ValueError, match="does not divide by 3 processes"):
        train_batches(source, CROP, batch_size=4, seed=0, process_count=3)
