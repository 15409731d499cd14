import jax
import numpy as np
import pytest

from mnv4_jax.ops import conv, kernels
from mnv4_jax.ops.split import split

SHAPES = [(2, 3), (), (1, 4, 1), (5,), (0,), (3,)]


@pytest.mark.parametrize("form", [conv.KERNEL_CPU, conv.NATIVE], ids=["kernel", "native"])
def test_the_parts_of_a_vector_in_their_order(form):
    if form.kernels and not kernels.available("kernels.cc"):
        pytest.skip("no C++ compiler")
    vector = np.random.default_rng(0).standard_normal(25, np.float32)  # six more than are asked for
    with conv.use(form):
        program = jax.jit(lambda vector: split(vector, SHAPES)).lower(vector)
    assert ("mnv4_split" in program.as_text()) == form.kernels
    start = 0
    for part, shape in zip(program.compile()(vector), SHAPES, strict=True):
        size = int(np.prod(shape))
        np.testing.assert_array_equal(part, vector[start : start + size].reshape(shape))
        start += size


def test_parts_that_are_longer_than_the_vector_are_refused():
    if not kernels.available("kernels.cc"):
        pytest.skip("no C++ compiler")
    program = jax.jit(lambda vector: kernels.split(vector, [(3,), (3,)]))
    with pytest.raises(Exception, match="longer than the vector"):
        jax.block_until_ready(program(np.zeros(5, np.float32)))
