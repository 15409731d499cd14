"""The recipe of configs/vit_tuned.py on its own row, made narrow: only what it names moves."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import vit_tuned
from mnv4_jax.models import vit, weights
from mnv4_jax.runtime.mesh import make_mesh
from mnv4_jax.training.packing import dotted
from mnv4_jax.training.step import Program
from tests.tiny import random_batch


@pytest.fixture
def narrow(monkeypatch):
    config = vit_tuned.get_config()
    row = vit.VARIANTS[config.model.name]
    row = dataclasses.replace(row, width=32, depth=2, heads=2)
    monkeypatch.setitem(vit.VARIANTS, config.model.name, row)
    config.data.image_size = 28
    return config


def test_exactly_the_norms_and_the_head_move(narrow):
    program = Program(narrow, make_mesh(jax.devices()[:1]), 0.1)
    before = weights.fresh_weights(narrow)
    batch = random_batch(4, 28)
    state, metrics = jax.jit(program.step)(jax.jit(program.init)(before), batch)
    assert np.isfinite(metrics["loss"])
    after = jax.jit(program.packing.unpack_state)(state).weights["params"]
    moved = {
        dotted(path): bool(np.any(np.asarray(a) != b))
        for (path, a), b in zip(
            jax.tree.leaves_with_path(after), jax.tree.leaves(before["params"]), strict=True
        )
    }
    assert any(moved.values())
    for name, has in moved.items():
        last = name.split(".")[-2]
        assert has == (last.startswith("norm") or last == "head"), name
