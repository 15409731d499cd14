"""Starting from other weights: what is copied, what starts fresh, and that the notes say so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from input_pipeline.cli import UserError
from mnv4_jax.models import classifier
from mnv4_jax.models.init_from import transfer
from tests.golden import formula
from tests.tiny import tiny_config

PICTURES = formula.pictures(2, 32).astype(np.float32) / 255


def split(seed=0, **overrides):
    overrides = {"model.zero_init_head": False, "model.zero_init_residual": False} | overrides
    model = classifier.build(tiny_config(**overrides), seed=seed)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.as_pure(params), nnx.as_pure(stats)


@functools.partial(jax.jit, static_argnums=0)
def logits(graphdef, params, stats):
    return nnx.merge(graphdef, params, stats, copy=True)(PICTURES)


def test_a_gabor_bank_in_front_of_pretrained_weights_keeps_their_function():
    graphdef, *source = split(seed=0)
    expected = logits(graphdef, *source)
    graphdef, *fresh = split(seed=1, **{"gabor.mode": "concat", "gabor.learnable": True})
    assert np.abs(logits(graphdef, *fresh) - expected).max() > 0.1 * np.abs(expected).max()
    *started, notes = transfer(*fresh, *source)
    np.testing.assert_allclose(logits(graphdef, *started), expected, rtol=1e-4, atol=1e-4)
    assert notes[0] == "backbone.conv_stem.kernel: 8 further input channels start at zero"
    assert "gabor.theta starts fresh: the source has none" in notes and len(notes) == 6


def test_statistics_are_taken_over_too():
    _, params, stats = split()
    moved = jax.tree.map(lambda x: x + 1, stats)
    _, started, notes = transfer(params, stats, params, moved)
    jax.tree.map(np.testing.assert_array_equal, started, moved)
    assert notes == []


def test_a_head_of_another_size_starts_fresh_and_is_said():
    _, params, stats = split()
    head = params["backbone"]["classifier"]
    source = jax.tree.map(lambda x: x, params)
    source["backbone"]["classifier"]["kernel"] = jnp.ones((1280, 1000))
    source["backbone"]["classifier"]["bias"] = jnp.ones(1000)
    started, _, notes = transfer(params, stats, source, stats)
    np.testing.assert_array_equal(started["backbone"]["classifier"]["kernel"], head["kernel"])
    assert [note.split(" starts fresh")[0] for note in notes] == [
        "backbone.classifier.bias (2,)",
        "backbone.classifier.kernel (1280, 2)",
    ]


def test_another_network_is_an_error_that_lists_the_parameters():
    _, *fresh = split()
    _, *source = split(**{"model.name": "mobilenetv4_conv_small_050"})
    with pytest.raises(UserError, match=r"another model.*blocks\.1\.0\.conv\.kernel is"):
        transfer(*fresh, *source)
