import pytest
from absl import flags

from configs import small
from input_pipeline.cli import UserError
from input_pipeline.transforms import Transform
from mnv4_jax.config import eval_transform, parse_flags, train_transform

SMALL = "--config=configs/small.py"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def parse(*arguments):
    return parse_flags(["main", *arguments], flags.FlagValues())


def test_overrides_take_effect_wherever_config_stands():
    config = parse("--config.train.batch_size=8", SMALL, "--config.gabor.mode=none")
    assert config.train.batch_size == 8
    assert config.gabor.mode == "none"


def test_the_demo_set_brings_its_own_size_and_epochs_unless_they_are_given():
    default = parse(SMALL)
    assert default.train.epochs == default.demo.epochs
    assert default.data.image_size == default.demo.image_size
    assert default.data.crop_pct == default.demo.crop_pct
    given = parse(SMALL, "--config.train.epochs=3", "--config.data.image_size=64")
    assert given.train.epochs == 3 and given.data.image_size == 64
    folder = parse(SMALL, "--config.data.dir=somewhere")
    assert folder.train.epochs != folder.demo.epochs
    assert folder.data.image_size == 224 and folder.data.crop_pct == 0.875


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [SMALL, "--config.train.epocs=3"],
            r"train\.epocs: no such field; did you mean train\.epoc",
        ),
        ([SMALL, "--config.train.batch_size=many"], r"batch_size=many: must be int, like 64"),
        ([SMALL, "--config.train.batch_size=1.5"], r"batch_size=1\.5: must be int"),
        ([SMALL, "--config.train.batch_size=0"], r"batch_size=0: must be at least 1"),
        ([SMALL, "--config.gabor.learnable=maybe"], r"gabor\.learnable=maybe: must be bool"),
        (
            [SMALL, "--config.gabor.mode=on"],
            r"gabor\.mode='on': must be one of none, enhance, conc",
        ),
        ([SMALL, "--config.augment.flip=2"], r"augment\.flip=2.*from 0 to 1"),
        ([SMALL, "--config.data.jpeg_quality=(90, 30)"], r"jpeg_quality.*the lower first"),
        ([SMALL, "--config.data.jpeg_quality=(30, 101)"], r"jpeg_quality.*from 1 to 100"),
        ([SMALL, "--config.data.jpeg_quality=(0.3, 0.95)"], r"jpeg_quality.*from 1 to 100"),
        ([SMALL, "--config.model.drop_rate=1"], r"model\.drop_rate=1\.0: must be below 1"),
        ([SMALL, "--config.data.crop_pct=0"], r"crop_pct=0\.0: must be from 0\.1 to 1"),
        ([SMALL, "--config.data.eval_image_size=2"], r"eval_image_size=2: must be 0 or at least"),
        ([SMALL, "--config.gabor.wavelengths=x"], r"wavelengths=.*must be px, like \(2\.5, 4\.0\)"),
        ([SMALL, "--config.gabor.sigma_ratio=0"], r"sigma_ratio=0\.0: must be above 0"),
        ([SMALL, "--config.gabor.gain=nan"], r"gain=nan: must be finite"),
        ([SMALL, "--config.seed=-1"], r"seed=-1: must be from 0 to 4294967295"),
        ([SMALL, "--config.train.learning_rate=nan"], r"learning_rate=nan: must be"),
        ([SMALL, "--config.train.epochs=0"], r"nothing to train for"),
        ([SMALL, "--worker=3"], r"--worker: no such flag"),
        ([SMALL, "train"], r"stray argument 'train'"),
        (["--config=configs/none.py"], r"configs/none\.py: no such file"),
        (["--config=LICENSE"], r"LICENSE: "),
        ([], r"--config is missing"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_be_right(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


def test_training_and_evaluation_cut_their_own_size_out_of_pictures_of_one_scale():
    data = small.get_config().data
    data.update(image_size=56, crop_pct=0.875, max_px=100, zoom=(0.5, 1.2))
    for crop, shorter_px in (("resize", 64), ("native", 100)):
        data.crop = crop
        train = Transform(size=56, shorter_px=shorter_px, crop=crop, zoom=(0.5, 1.2))
        for side in (0, 40):
            data.eval_image_size = side
            assert train_transform(data) == train
            assert eval_transform(data) == Transform(side or 56, shorter_px, crop)
