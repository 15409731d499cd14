"""Turns the command line into a valid config, or a one-line error; and a config into transforms."""

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from input_pipeline.cli import UserError
from input_pipeline.transforms import Transform

_CHOICES = {
    "data.crop": ("native", "resize"),
    "data.cache": ("auto", "none", "host", "device"),
    "model.batch_norm": ("global", "local"),
    "model.dtype": ("auto", "float32", "bfloat16", "float64"),
    "train.adversary.method": ("none", "fgsm", "pgd", "trades"),
    "gabor.mode": ("none", "enhance", "concat"),
    "gabor.response": ("real", "magnitude"),
}
_AT_LEAST = {
    "data.image_size": 32,
    "data.eval_image_size": 0,
    "data.max_px": 32,
    "data.cache_gib": 0,
    "data.threads": 0,
    "data.workers": 0,
    "train.batch_size": 1,
    "train.epochs": 0,
    "train.steps": 0,
    "train.log_every_steps": 1,
    "train.eval_every_steps": 0,
    "train.learning_rate": 0,
    "train.warmup_epochs": 0,
    "train.weight_decay": 0,
    "train.clip_norm": 0,
    "train.max_bad_steps": 1,
    "train.consistency": 0,
    "train.adversary.budget": 0,
    "train.adversary.steps": 1,
    "train.adversary.step_size": 0,
    "train.adversary.weight": 0,
    "train.adversary.warmup_epochs": 0,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 1,
    "augment.brightness": 0,
    "augment.contrast": 0,
    "augment.saturation": 0,
    "augment.blur": 0,
    "augment.gamma": 0,
    "augment.noise": 0,
}
_SHARES = (
    "data.blended",
    "data.jpeg_prob",
    "data.downscale_prob",
    "data.webp_prob",
    "model.drop_rate",
    "model.drop_path_rate",
    "augment.flip",
    "augment.erase",
    "train.label_smoothing",
    "train.adversary.share",
    "train.ema_decay",
)


def parse_flags(argv: Sequence[str], flag_values: flags.FlagValues) -> ConfigDict:
    """Parses the whole command line into `flag_values`, `--config` and its fields included.

    Returns:
      The config with its overrides, resolved for the demo set and checked.

    Raises:
      UserError: an unknown flag or field, a wrong value, an extra word, a missing config file.
    """
    # ml_collections needs --config before --config.field; users should not have to know that.
    named = [a for a in argv[1:] if a.startswith("--config=")]
    if not named:
        raise UserError("--config is missing: try --config=configs/small.py")
    file = named[-1].removeprefix("--config=")
    if not os.path.isfile(file):
        raise UserError(f"--config={file}: no such file; try --config=configs/small.py")
    argv = [argv[0], named[-1], *(a for a in argv[1:] if a not in named)]
    config_flags.DEFINE_config_file("config", sys_argv=argv, flag_values=flag_values)
    try:
        defaults = fields(flag_values["config"].parser.parse(file))
    except Exception as error:
        raise UserError(f"--config={file}: {type(error).__name__}: {_last_line(error)}") from None
    for argument in argv[2:]:
        field = argument.partition("=")[0].removeprefix("--config.")
        if argument.startswith("--config.") and field not in defaults:
            raise UserError(f"config.{field}: no such field{_did_you_mean(field, defaults)}")
    try:
        words = flag_values(argv)
        config = flag_values.config
    except flags.UnrecognizedFlagError as error:
        near = _did_you_mean(error.flagname, list(flag_values))
        raise UserError(f"--{error.flagname}: no such flag{near}") from None
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(error, defaults)) from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_last_line(error)) from None
    if len(words) > 1:
        raise UserError(f"stray argument {words[1]!r}: every option is written --name=value")
    overrides = config_flags.get_override_values(flag_values["config"])
    if not config.data.dir:
        if "train.epochs" not in overrides:
            config.train.epochs = float(config.demo.epochs)
        for name in ("image_size", "crop_pct"):
            if f"data.{name}" not in overrides:
                config.data[name] = config.demo[name]
    check(config)
    return config


def fields(config: ConfigDict) -> dict[str, object]:
    """{"train.epochs": its value, …}"""
    found = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= {f"{name}.{below}": v for below, v in fields(value).items()}
        else:
            found[name] = value
    return found


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _wrong_value(error: flags.IllegalFlagValueError, defaults: dict[str, object]) -> str:
    message = _last_line(error)
    for field, default in defaults.items():
        if message.startswith(f"flag --config.{field}="):
            given = message.removeprefix("flag --").split(": ")[0]
            return f"{given}: must be {type(default).__name__}, like {default!r}"
    return message.removeprefix("flag ")


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def check(config: ConfigDict) -> None:
    """Raises UserError for an invalid value; names the field and what would be right."""
    for field, choices in _CHOICES.items():
        if _get(config, field) not in choices:
            raise UserError(
                f"config.{field}={_get(config, field)!r}: must be one of {', '.join(choices)}"
            )
    for field, least in _AT_LEAST.items():
        if not (_get(config, field) >= least and math.isfinite(_get(config, field))):
            raise UserError(f"config.{field}={_get(config, field)}: must be at least {least}")
    for field, least, most in (
        ("data.jpeg_quality", 1, 100),
        ("data.downscale", 0.01, 1),
        ("data.zoom", 0.1, 10),
    ):
        pair = _get(config, field)
        if not (_are_numbers(pair) and len(pair) == 2 and least <= pair[0] <= pair[1] <= most):
            raise UserError(
                f"config.{field}={pair!r}: must be two numbers from {least} to {most},"
                " the lower first"
            )
    weights = config.data.weights
    if not _are_numbers(weights) or any(w < 0 for w in weights) or (weights and not any(weights)):
        raise UserError(
            f"config.data.weights={weights!r}: must be numbers from 0, one a set, or ()"
        )
    if config.train.consistency and config.train.adversary.method != "none":
        raise UserError(
            f"config.train.consistency={config.train.consistency}: not together with"
            f" config.train.adversary.method={config.train.adversary.method}; set one of them"
        )
    if config.train.consistency and config.data.webp_prob:
        raise UserError(
            f"config.train.consistency={config.train.consistency}: not together with"
            f" config.data.webp_prob={config.data.webp_prob}, which changes the clean view too;"
            " set one of them"
        )
    if not 0 < config.train.layer_decay <= 1:
        raise UserError(
            f"config.train.layer_decay={config.train.layer_decay}: must be above 0, at most 1"
        )
    trainable = config.train.trainable
    if not isinstance(trainable, tuple) or not all(isinstance(x, str) and x for x in trainable):
        raise UserError(
            f"config.train.trainable={trainable!r}: must be parts of names, like ('norm', 'head')"
        )
    wavelengths = config.gabor.wavelengths
    if not (_are_numbers(wavelengths) and wavelengths and min(wavelengths) > 0):
        raise UserError(f"config.gabor.wavelengths={wavelengths!r}: must be px, like (2.5, 4.0)")
    for name in ("sigma_ratio", "gamma"):
        if not 0 < config.gabor[name] < math.inf:
            raise UserError(f"config.gabor.{name}={config.gabor[name]}: must be above 0")
    for name in ("psi", "gain"):
        if not math.isfinite(config.gabor[name]):
            raise UserError(f"config.gabor.{name}={config.gabor[name]}: must be finite")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed={config.seed}: must be from 0 to {2**32 - 1}")
    if 0 < config.data.eval_image_size < 32:
        raise UserError(
            f"config.data.eval_image_size={config.data.eval_image_size}: must be 0 or at least 32"
        )
    if not 0.1 <= config.data.crop_pct <= 1:
        raise UserError(f"config.data.crop_pct={config.data.crop_pct}: must be from 0.1 to 1")
    for field in _SHARES:
        if not 0 <= _get(config, field) <= 1:
            raise UserError(f"config.{field}={_get(config, field)}: must be from 0 to 1")
    for name in ("drop_rate", "drop_path_rate"):
        if config.model[name] == 1:
            raise UserError(f"config.model.{name}=1.0: must be below 1, or nothing is left")
    if not config.train.steps and not config.train.epochs:
        raise UserError("config.train.epochs=0 and config.train.steps=0: nothing to train for")


def _are_numbers(values) -> bool:
    return isinstance(values, tuple) and all(
        isinstance(x, int | float) and math.isfinite(x) for x in values
    )


def _get(config: ConfigDict, field: str):
    return functools.reduce(lambda section, name: section[name], field.split("."), config)


def train_transform(data: ConfigDict) -> Transform:
    """The crops for training that `config.data` describes."""
    return dataclasses.replace(eval_transform(data), size=data.image_size, zoom=tuple(data.zoom))


def eval_transform(data: ConfigDict) -> Transform:
    """The part of a picture that is scored: by default as large as a crop for training.

    A larger part is not better: the maps of the last stage get another size, the share of padding
    in them changes, and so does the mean for fakes (docs/RESULTS.md). Reads no field that only
    training needs: an older checkpoint's config may lack it.
    """
    scaled = data.crop == "resize"
    return Transform(
        size=data.eval_image_size or data.image_size,
        shorter_px=round(data.image_size / data.crop_pct) if scaled else data.max_px,
        crop=data.crop,
    )
