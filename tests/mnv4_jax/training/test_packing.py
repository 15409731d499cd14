import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from mnv4_jax.models import weights as weights_lib
from mnv4_jax.runtime.mesh import make_mesh
from mnv4_jax.training import optimizer
from mnv4_jax.training.packing import Packing, dotted
from mnv4_jax.training.step import Program
from tests.tiny import four_block_config, random_batch


@pytest.fixture(scope="module")
def program():
    return Program(four_block_config(**{"gabor.mode": "concat"}), make_mesh(), 1e-3)


def numbered(tree):
    """`tree` with another number in every array."""
    number = itertools.count()
    return jax.tree.map(lambda x: np.full(x.shape, next(number), x.dtype), tree)


def test_unpacking_undoes_packing(program):
    weights = numbered(program.like)
    vectors = program.packing.pack(weights)
    assert vectors.keys() == {"decayed", "plain", "stats"}
    assert sum(v.size for v in vectors.values()) == sum(x.size for x in jax.tree.leaves(weights))
    jax.tree.map(np.testing.assert_array_equal, program.packing.unpack(vectors), weights)


def test_every_moment_has_the_name_of_its_parameter(program):
    weights = weights_lib.fresh_weights(program.config)
    packed = program.init(weights)
    named = program.packing.unpack_state(packed)
    # The same as an optimizer that was given named arrays, but for what it says of names.
    kinds = {type(x).__name__: x for x in named.opt_state if hasattr(x, "mu")}
    adam = kinds["ScaleByAdamState"]
    for moment in (adam.mu, adam.nu):
        assert jax.tree.map(np.shape, moment) == jax.tree.map(np.shape, weights["params"])
    filled = numbered(named)
    again = program.packing.unpack_state(program.packing.pack_state(filled))
    jax.tree.map(np.testing.assert_array_equal, again, filled)


def test_a_model_without_batch_norm_packs():
    params = nnx.State({"head": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}})
    weights = {"params": params, "stats": nnx.State({})}
    packing = Packing(weights, lambda name: "decayed" if name.endswith("kernel") else "plain")
    vectors = packing.pack(weights)
    assert {k: v.size for k, v in vectors.items()} == {"decayed": 6, "plain": 3}
    jax.tree.map(np.testing.assert_array_equal, packing.unpack(vectors), weights)


def test_dotted_names():
    paths = jax.tree.leaves_with_path(nnx.State({"blocks": {0: {"kernel": 1}}}))
    assert [dotted(path) for path, _ in paths] == ["blocks.0.kernel"]


@pytest.mark.parametrize(
    ("pattern", "name", "named"),
    [
        ("norm", "backbone.blocks.1.norm2.scale", True),
        ("norm", "backbone.norm_pre.scale", False),
        ("blocks.1", "backbone.blocks.1.conv.kernel", True),
        ("blocks.1", "backbone.blocks.11.conv.kernel", False),
        ("head", "backbone.head.bias", True),
        ("bn.scale", "backbone.blocks.0.pw_exp.bn.scale", True),
        ("bn.scale", "backbone.blocks.0.pw_exp.bn.bias", False),
    ],
)
def test_a_pattern_names_whole_parts(pattern, name, named):
    assert optimizer.names(pattern, name) == named


def test_only_what_is_named_moves_and_only_it_has_moments_and_an_average():
    config = four_block_config(**{"train.trainable": ("classifier",), "train.ema_decay": 0.5})
    config.model.zero_init_head = False
    program = Program(config, make_mesh(jax.devices()[:1]), 0.1)
    weights = weights_lib.fresh_weights(config)
    batch = random_batch(4, 32)
    state = jax.jit(program.init)(weights)
    n_head = sum(x.size for x in jax.tree.leaves(weights["params"]["backbone"]["classifier"]))
    (adam,) = [s for s in state.opt_state if hasattr(s, "mu")]
    assert sum(v.size for v in jax.tree.leaves(adam.mu)) == n_head
    assert "frozen" not in state.ema
    state, _ = jax.jit(program.step)(state, batch)
    named = jax.jit(program.packing.unpack_state)(state)
    for held in (named.weights, named.ema):
        for path, after in jax.tree.leaves_with_path(held["params"]):
            before = weights["params"]
            for part in path:
                before = before[part.key]
            moved = np.abs(np.asarray(after) - before).max() > 0
            assert moved == ("classifier" in dotted(path)), dotted(path)
    again = program.packing.unpack_state(program.packing.pack_state(named))
    jax.tree.map(np.testing.assert_array_equal, again, named)


def test_a_pattern_that_names_nothing_is_an_error():
    config = four_block_config(**{"train.trainable": ("classifier", "attention")})
    with pytest.raises(ValueError, match=r"train\.trainable: 'attention' names no parameter"):
        Program(config, make_mesh(), 0.1)


def test_learning_rates_fall_with_the_depth():
    """Adam's first step is the learning rate whatever the gradient, here by a half a layer."""
    fields = {"train.layer_decay": 0.5, "train.weight_decay": 0.0, "train.clip_norm": 0.0}
    program = Program(four_block_config(**fields), make_mesh(jax.devices()[:1]), 1.0)
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), program.like)
    packed = program.packing.params(program.packing.pack(params))
    updates, _ = program.optimizer.update(packed, program.optimizer.init(packed), packed)
    vectors = program.packing.pack(params) | updates
    moved = program.packing.unpack(vectors)["params"]["backbone"]
    n_blocks = sum(len(stage) for stage in moved["blocks"].values())
    steps = [float(np.ravel(moved[top]["kernel"])[0]) for top in ("conv_stem", "classifier")]
    np.testing.assert_allclose(steps, [-(0.5 ** (n_blocks + 1)), -1.0], rtol=1e-4)
    in_order = [
        float(np.ravel(jax.tree.leaves(block)[0])[0])
        for _, stage in sorted(moved["blocks"].items())
        for _, block in sorted(stage.items())
    ]
    expected = [-(0.5 ** (n_blocks - i)) for i in range(n_blocks)]
    np.testing.assert_allclose(in_order, expected, rtol=1e-4)
