"""Every form of a convolution equals the plain one, values and gradients."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv4_jax.ops import conv, kernels

CASES = [  # height, width, Cin, Cout, kernel, stride, groups
    (9, 7, 6, 6, 3, 1, 6),
    (9, 7, 6, 6, 3, 2, 6),
    (8, 10, 6, 6, 5, 1, 6),
    (11, 8, 6, 6, 5, 2, 6),
    (4, 3, 5, 5, 5, 2, 5),
    (9, 7, 3, 8, 3, 1, 1),
    (9, 8, 3, 8, 3, 2, 1),
    (8, 8, 4, 6, 5, 2, 1),
    (7, 6, 5, 8, 1, 1, 1),
    (7, 6, 5, 8, 1, 2, 1),
]


def _inputs(case, dtype, seed=0):
    height, width, channels, features, k, stride, groups = case
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, height, width, channels))
    kernel = rng.standard_normal((k, k, channels // groups, features))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), {"stride": stride, "groups": groups}


def _with_gradients(function, x, kernel, options):
    @jax.jit  # one compilation, where eager execution would compile every operation
    def run(x, kernel):
        y, pullback = jax.vjp(lambda x, kernel: function(x, kernel, **options), x, kernel)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return y, *pullback(dy)

    return run(x, kernel)


@pytest.mark.parametrize("case", CASES)
def test_pure_form_equals_reference(case):
    with jax.enable_x64(True):
        x, kernel, options = _inputs(case, jnp.float64)
        with conv.use(conv.PURE_CPU):
            got = _with_gradients(conv.conv2d, x, kernel, options)
        want = _with_gradients(conv.reference, x, kernel, options)
        for name, a, b in zip(("y", "dx", "dkernel"), got, want, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10, err_msg=name)


WIDE = [  # vectors of every width, and windows of them that overlap in dx
    (6, 6, 40, 40, 5, 1, 40),
    (7, 9, 5, 45, 3, 1, 1),
    (16, 16, 3, 12, 7, 1, 1),
    (16, 17, 3, 12, 7, 2, 1),
    (20, 20, 3, 37, 15, 1, 1),
    (33, 33, 61, 37, 1, 1, 1),  # more rows than one task sums
    (9, 10, 21, 21, 7, 1, 21),
]


@pytest.mark.parametrize("case", [*CASES, *WIDE])
def test_kernels_equal_reference(case):
    if not kernels.available("kernels.cc"):
        pytest.skip("no C++ compiler")
    x, kernel, options = _inputs(case, jnp.float32)
    with conv.use(conv.KERNEL_CPU):
        got = _with_gradients(conv.conv2d, x, kernel, options)
    want = _with_gradients(conv.reference, x, kernel, options)
    for name, a, b in zip(("y", "dx", "dkernel"), got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 6e-2)])
def test_dtype_is_kept(dtype, tolerance):
    x, kernel, options = _inputs((9, 7, 6, 6, 3, 2, 6), dtype)
    got = _with_gradients(conv.conv2d, x, kernel, options)
    want = _with_gradients(
        conv.reference, x.astype(jnp.float32), kernel.astype(jnp.float32), options
    )
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float32), b, rtol=tolerance, atol=tolerance * 10
        )


def test_padding_other_than_half():
    x, kernel, options = _inputs((9, 7, 6, 6, 3, 2, 6), jnp.float32)
    for padding in (0, 2):
        np.testing.assert_allclose(
            conv.conv2d(x, kernel, padding=padding, **options),
            conv.reference(x, kernel, padding=padding, **options),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("source", ["kernels.cc", "network.cc"])
def test_where_there_is_a_compiler_it_compiles_them(source):
    assert kernels.available(source)


def test_other_groups_are_refused():
    with pytest.raises(ValueError, match="groups"):
        conv.conv2d(jnp.zeros((1, 4, 4, 4)), jnp.zeros((3, 3, 2, 4)), groups=2)


@pytest.mark.skipif(not kernels.available("kernels.cc"), reason="there is no compiler here")
def test_where_no_cache_can_be_written_the_kernels_are_built_for_this_process(
    monkeypatch, tmp_path, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MNV4_CACHE", str(tmp_path / "file" / "below"))
    assert kernels._build("kernels.cc").is_file()
    assert not caplog.text


def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("MNV4_CACHE", str(tmp_path))
    assert not kernels.available.__wrapped__("kernels.cc")
    assert "cannot be built" in caplog.text
    assert not list(tmp_path.rglob("*.so"))
