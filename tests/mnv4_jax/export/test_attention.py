"""Networks with attention in every form that leaves the house: the same answers from each."""

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline.cli import UserError
from mnv4_jax import convert
from mnv4_jax.export.stablehlo import stablehlo
from mnv4_jax.models import vit
from tests import narrow  # noqa: F401  registers its networks
from tests.golden import formula
from tests.mnv4_jax.models.test_timm_keys import detector_of, jax_logits, with_formula_weights

pytestmark = [pytest.mark.onnx, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenetv4_hybrid_medium", 64),
        ("vit_tiny_patch16_224", 64),
        ("vit_narrow_clip", 56),
        ("vit_narrow_dinov2", 56),
        ("vit_narrow_registers", 56),
    ],
)
def test_every_form_answers_the_same_or_is_refused(name, size, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import torch

    from mnv4_jax.export import onnx as onnx_export
    from mnv4_jax.export import torch_module
    from tests import narrow_timm  # noqa: F401  registers its networks

    config, model = with_formula_weights(**{"model.name": name, "data.image_size": size})
    detector, pictures = detector_of(config, model), formula.pictures(4, size)
    expected = jax.nn.softmax(jax_logits(model, pictures))[:, 0]
    assert np.ptp(expected) > 1e-3  # the pictures are told apart

    def off(p_fake):
        return np.abs(np.asarray(p_fake) - expected).max()

    weights = convert.to_torch(detector)
    file = tmp_path / "model.safetensors"
    file.write_bytes(weights)
    with torch.no_grad():
        assert off(torch_module.load(file)(torch.from_numpy(pictures))) <= 1e-5
    assert off(jax.export.deserialize(stablehlo(detector)).call(pictures)) <= 1e-5
    graph = onnx_export.export(weights)
    session = onnx_export.make_session(graph)
    assert off(onnx_export.run(session, pictures)) <= 1e-5
    if name.startswith("vit"):  # the graph resamples the positions itself
        for patches in (3, 8, 9):
            other = formula.pictures(3, patches * vit.VARIANTS[name].patch)
            p_fake = jax.nn.softmax(jax_logits(model, other))[:, 0]
            assert np.ptp(p_fake) > 1e-3
            np.testing.assert_allclose(onnx_export.run(session, other), p_fake, rtol=0, atol=1e-5)
    half = onnx_export.float16(graph)
    assert off(onnx_export.run(onnx_export.make_session(half), pictures)) <= 5e-3
    assert len(half) < 0.6 * len(graph)

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(formula.pictures(16, size, seed=9)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    if name.startswith("vit"):
        expected_error = f"int8 is for networks of convolutions, and {name} has no more than 1"
        with pytest.raises(UserError, match=expected_error):
            onnx_export.quantize(graph, detector, str(folder))
    else:
        small = onnx_export.quantize(graph, detector, str(folder))
        assert len(small) < 0.35 * len(graph)
        assert off(onnx_export.run(onnx_export.make_session(small), pictures)) < 0.1
