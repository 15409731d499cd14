"""The published network, told apart from a similar one: timm's figures, without torch."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnv4_jax.models import classifier, timm_keys
from tests import golden
from tests.golden import formula
from tests.tiny import tiny_config

GOLDEN = json.loads((pathlib.Path(golden.__path__[0]) / "mobilenetv4.json").read_text())


def abstract(**overrides):
    config = tiny_config(**overrides)
    return nnx.eval_shape(lambda: classifier.build(config, seed=0))


def with_formula_weights(**overrides):
    """(graphdef, weights) of a model that holds the formula's weights."""
    model = abstract(**overrides)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    shapes = {
        timm_keys.timm_key(path): timm_keys.torch_shape(value.shape)
        for state in (params, stats)
        for path, value in nnx.to_flat_state(state)
    }
    return graphdef, timm_keys.from_timm(model, formula.tensors(shapes))


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(graphdef, weights, pictures, train=False, key=None):
    model = nnx.merge(graphdef, weights["params"], weights["stats"], copy=True)
    return model(pictures.astype(jnp.float32) / 255, train=train, key=key)


@pytest.mark.parametrize("name", formula.PUBLISHED)
def test_parameter_count_is_timms(name):
    params = nnx.state(abstract(**{"model.name": name}), nnx.Param)
    assert sum(p.size for p in jax.tree.leaves(params)) == GOLDEN[name]["parameters"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if "_large" in n else ()) for n in formula.PUBLISHED],
)
def test_logits_are_timms(name):
    graphdef, weights = with_formula_weights(**{"model.name": name})
    logits = run(graphdef, weights, formula.pictures())
    expected = np.array(GOLDEN[name]["logits"])
    assert np.abs(logits - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    apart = 0.02 if "hybrid" in name else 0.1  # attention evens the formula's pictures out
    assert np.abs(expected[0] - expected[1]).max() > apart, "the pictures make no difference"


def test_zero_init_residual_touches_only_blocks_with_a_residual():
    config = tiny_config(**{"model.zero_init_residual": True, "model.zero_init_head": True})
    graphdef = nnx.graphdef(abstract())

    @jax.jit
    def weights():
        return nnx.as_pure(nnx.state(classifier.build(config, seed=0)))

    backbone = nnx.merge(graphdef, weights()).backbone
    blocks = [block for stage in backbone.blocks for block in stage]
    zero = {i for i, b in enumerate(blocks) if b.residual and not jnp.any(b.last_scale[...])}
    assert zero == {i for i, block in enumerate(blocks) if block.residual} and len(zero) == 10
    scales = [v for path, v in nnx.to_flat_state(nnx.state(backbone)) if path[-1] == "scale"]
    assert sum(not jnp.any(v[...]) for v in scales) == len(zero)
    assert not jnp.any(backbone.classifier.kernel[...])


def test_dropout_and_stochastic_depth_follow_the_key_and_stay_out_of_evaluation():
    overrides = {"model.drop_rate": 0.5, "model.drop_path_rate": 0.9}
    graphdef, weights = with_formula_weights(**overrides)
    pictures = formula.pictures(4, 32)
    train = jax.jit(lambda key: run.__wrapped__(graphdef, weights, pictures, True, key))
    one, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2
    plain, _ = with_formula_weights()
    evaluated = run(graphdef, weights, pictures)
    np.testing.assert_allclose(evaluated, run(plain, weights, pictures), atol=1e-6)


def test_bfloat16_computes_close_to_float32_and_returns_float32():
    graphdef, weights = with_formula_weights(**{"model.dtype": "bfloat16"})
    logits = run(graphdef, weights, formula.pictures())
    assert logits.dtype == jnp.float32
    expected = np.array(GOLDEN["mobilenetv4_conv_small_035"]["logits"])
    assert 1e-5 < np.abs(logits - expected).max() < 0.05


def test_an_unknown_model_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"model\.name='resnet50'.*mobilenetv4_conv_small"):
        abstract(**{"model.name": "resnet50"})
