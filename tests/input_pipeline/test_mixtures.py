import numpy as np
import pytest

from input_pipeline import mixtures
from input_pipeline.batches import train_batches
from input_pipeline.cli import UserError
from input_pipeline.sources import has_split, open_source
from input_pipeline.transforms import Transform
from tests.pictures import encoded, smooth


def write(folder, **counts):
    """folder/Train/<class>/*.jpg, as many of each class as `counts` says."""
    for name, count in counts.items():
        (folder / "Train" / name).mkdir(parents=True)
        for i in range(count):
            (folder / "Train" / name / f"{i}.jpg").write_bytes(encoded(smooth(40, 40, i)))
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Three sets: 9 fake and 7 real, 4 fake, 25 real."""
    root = tmp_path_factory.mktemp("sets")
    a = write(root / "a", Fake=9, Real=7)
    b = write(root / "b", Fake=4)
    c = write(root / "c", Real=25)
    return f"{a},{b},{c}"


def order_of(mixture, seed=0, weights=(), balance=True, blended=0.0):
    return mixtures.Order(mixture, seed, weights, balance, blended)


def test_a_mixture_holds_the_pictures_of_all_sets(data_dir):
    mixture = open_source(data_dir, "Train")
    assert len(mixture) == 45
    assert mixture.names == ["a", "b", "c"]
    np.testing.assert_array_equal(np.bincount(mixture.set_of), [16, 4, 25])
    np.testing.assert_array_equal(np.bincount(mixture.labels), [13, 32])
    for i in (0, 15, 16, 20, 44):
        name, path = mixture.ids[i].split("/", 1)
        folder = data_dir.split(",")["abc".index(name)]
        with open(f"{folder}/{path}", "rb") as file:
            assert mixture.encoded(i) == file.read()


def test_classes_are_balanced_and_sets_drawn_by_the_square_root_of_their_size(data_dir):
    mixture = open_source(data_dir, "Train")
    drawn = order_of(mixture)(np.arange(10 * mixtures.BLOCK))
    labels, sets = mixture.labels[drawn], mixture.set_of[drawn]
    assert (labels == 0).mean() == 0.5
    # Of the fakes: a and b as 4 to 2; of the real ones: a and c as 4 to 5.
    assert (sets[labels == 0] == 1).mean() == pytest.approx(2 / 6, abs=0.002)
    assert (sets[labels == 1] == 2).mean() == pytest.approx(5 / 9, abs=0.002)


def test_weights_of_the_user_and_no_balance(data_dir):
    mixture = open_source(data_dir, "Train")
    drawn = order_of(mixture, weights=(1.0, 3.0, 0.0), balance=False)(np.arange(mixtures.BLOCK))
    sets = mixture.set_of[drawn]
    np.testing.assert_allclose(np.bincount(sets, minlength=3) / len(sets), [0.25, 0.75, 0])
    of_a = mixture.labels[drawn[sets == 0]]
    assert (of_a == 0).mean() == pytest.approx(9 / 16, abs=0.01)


def test_every_picture_of_a_cell_comes_once_in_each_round(data_dir):
    mixture = open_source(data_dir, "Train")
    drawn = order_of(mixture)(np.arange(3 * mixtures.BLOCK))
    of_b = drawn[mixture.set_of[drawn] == 1]
    # Whole blocks, since the draws of a cell are permuted within one.
    counts = np.bincount(of_b - of_b.min())
    assert counts.max() - counts.min() <= 1


def test_the_order_is_a_function_of_seed_and_position(data_dir):
    mixture = open_source(data_dir, "Train")
    positions = np.arange(5000)
    whole = order_of(mixture)(positions)
    for part in (positions[1000:1064], positions[::7], positions[::-1]):
        np.testing.assert_array_equal(order_of(mixture)(part), whole[part])
    assert (order_of(mixture, seed=1)(positions) != whole).any()


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_of_a_mixture_do_not_depend_on_processes_or_start(data_dir, processes):
    mixture = open_source(data_dir, "Train")

    def rows(start, count):
        parts = []
        for p in range(processes):
            with train_batches(
                mixture,
                Transform(size=32, shorter_px=37, crop="resize"),
                batch_size=8,
                seed=3,
                start=start,
                process_index=p,
                process_count=processes,
            ) as batches:
                parts.append([next(batches) for _ in range(count)])
        return [np.concatenate([b["index"] for b in batch]) for batch in zip(*parts, strict=True)]

    expected = order_of(mixture, seed=3)(np.arange(32)).reshape(4, 8)
    np.testing.assert_array_equal(rows(0, 4), expected)
    np.testing.assert_array_equal(rows(2, 2), expected[2:])


@pytest.mark.parametrize(("blended", "from_a"), [(0.3, 0), (5 / 9, 0), (1.0, 16 / 81)])
def test_fakes_are_made_first_for_sets_without_fakes(data_dir, blended, from_a):
    """a has 4 of 9 of the photographs in batches, c 5 and no fakes: at a share of 5 / 9 it has as
    many fakes as photographs, and what is more is shared by both."""
    mixture = open_source(data_dir, "Train")
    chosen = order_of(mixture, blended=blended).photographs((np.arange(9000) + 0.5) / 9000)
    assert (mixture.labels[chosen] == 1).all()
    counts = np.bincount(chosen, minlength=len(mixture))[mixture.labels == 1]
    np.testing.assert_allclose(counts[:7], from_a * 9000 / 7, atol=1)
    np.testing.assert_allclose(counts[7:], (1 - from_a) * 9000 / 25, atol=1)


def test_fakes_are_made_of_all_sets_where_each_has_its_own(tmp_path):
    a, b = write(tmp_path / "a", Fake=2, Real=2), write(tmp_path / "b", Fake=2, Real=6)
    mixture = open_source(f"{a},{b}", "Train")
    order = order_of(mixture, weights=(1.0, 3.0), blended=0.5)
    chosen = order.photographs((np.arange(8000) + 0.5) / 8000)
    np.testing.assert_allclose(np.bincount(mixture.set_of[chosen]) / 8000, [0.25, 0.75], atol=0.001)


def test_fakes_are_not_made_from_photographs_of_a_set_of_weight_0(data_dir):
    mixture = open_source(data_dir, "Train")
    transform = Transform(size=32, shorter_px=37, crop="resize")
    weights = (1.0, 1.0, 0.0)
    with train_batches(
        mixture, transform, batch_size=64, seed=3, blended=1.0, weights=weights
    ) as batches:
        batch = next(batches)
    assert (batch["label"] == 0).any()
    assert set(mixture.set_of[batch["index"]]) == {0}  # the only photographs that are drawn


@pytest.mark.parametrize(
    ("fake", "real"), [("1_fake", "0_real"), ("AI", "authentic"), ("ai-generated", "Original")]
)
def test_classes_are_found_under_names_in_use(tmp_path, fake, real):
    source = open_source(write(tmp_path, **{fake: 2, real: 3}), "Train")
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1, 1])


def test_two_folders_of_one_class_are_doubtful(tmp_path):
    root = write(tmp_path, fake=1, synthetic=1, real=1)
    with pytest.raises(UserError, match="both fake and synthetic; expected one folder Fake"):
        open_source(root, "Train")


def test_one_class_alone_is_no_set_to_train_on(tmp_path):
    root = write(tmp_path, Fake=2)
    with pytest.raises(UserError, match=r"no Real folder \(found: Fake\)"):
        open_source(root, "Train")


def test_bad_mixtures_are_one_line(data_dir, tmp_path):
    a, b, _ = data_dir.split(",")
    with pytest.raises(UserError, match="named twice"):
        open_source(f"{a},{b},{a}/", "Train")
    with pytest.raises(UserError, match="empty name between commas"):
        open_source(f"{a},,{b}", "Train")
    other = write(tmp_path / "other", Fake=1)
    with pytest.raises(UserError, match="no Real picture in the Train of any set"):
        open_source(f"{b},{other}", "Train")
    with pytest.raises(UserError, match=r"weights has 2 numbers, but .* names 3 sets"):
        order_of(open_source(data_dir, "Train"), weights=(1.0, 1.0))
    with pytest.raises(UserError, match="weights leaves only one class"):
        order_of(open_source(data_dir, "Train"), weights=(0.0, 1.0, 0.0))
    assert not has_split(data_dir, "Validation")
    with pytest.raises(UserError, match="none of these sets has a Validation folder"):
        open_source(data_dir, "Validation")
    assert len(open_source(f"{b},{other}", "Train", one_class=True)) == 5


def test_sets_of_one_name_are_told_apart(tmp_path):
    a = write(tmp_path / "x" / "faces", Fake=1)
    b = write(tmp_path / "y" / "faces", Real=1)
    assert open_source(f"{a},{b}", "Train").names == ["x/faces", "y/faces"]
