"""Networks with attention in every form that leaves the house: the same answers from each."""

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline.cli import UserError
from mnv4_jax import convert
from mnv4_jax.export.stablehlo import stablehlo
from tests.golden import formula
from tests.mnv4_jax.models.test_timm_keys import detector_of, jax_logits, with_formula_weights

pytestmark = [pytest.mark.onnx, pytest.mark.slow]
SIZE = 64


@pytest.mark.parametrize("name", ["mobilenetv4_hybrid_medium", "vit_tiny_patch16_224"])
def test_every_form_answers_the_same_or_is_refused(name, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import torch

    from mnv4_jax.export import onnx as onnx_export
    from mnv4_jax.export import torch_module

    config, model = with_formula_weights(**{"model.name": name, "data.image_size": SIZE})
    detector, pictures = detector_of(config, model), formula.pictures(4, SIZE)
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
    assert off(onnx_export.run(onnx_export.make_session(graph), pictures)) <= 1e-5
    half = onnx_export.float16(graph)
    assert off(onnx_export.run(onnx_export.make_session(half), pictures)) <= 5e-3
    assert len(half) < 0.6 * len(graph)

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(formula.pictures(16, SIZE, seed=9)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    if name.startswith("vit"):
        expected_error = f"int8 is for networks of convolutions, and {name} has no more than 1"
        with pytest.raises(UserError, match=expected_error):
            onnx_export.quantize(graph, detector, str(folder))
    else:
        small = onnx_export.quantize(graph, detector, str(folder))
        assert len(small) < 0.35 * len(graph)
        assert off(onnx_export.run(onnx_export.make_session(small), pictures)) < 0.1
