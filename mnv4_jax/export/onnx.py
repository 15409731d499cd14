"""A detector as one ONNX graph, in float32 or int8, with preprocessing, Gabor bank and softmax.

It is exported from `export/torch_module.py`, so it needs the extra `onnx`.
"""

import contextlib
import logging
import pathlib
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np

from input_pipeline import listing, sources
from input_pipeline.cli import UserError
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import metrics

try:
    import onnx
    import onnxruntime
    import torch
    from onnxruntime import quantization

    from mnv4_jax.export import torch_module
except ImportError as error:
    raise UserError(
        f"--to=onnx needs the extra `onnx`: pip install 'mnv4_jax[onnx]' ({error})"
    ) from None

OPSET = 20
CALIBRATION_PICTURES = 64  # all their activations are in memory at once
MOST_LOST = {"accuracy": 0.01, "auc": 0.005}  # on Validation; a larger loss is refused
_FEWEST_TO_JUDGE = 100  # pictures: with fewer, a single one exceeds the bound
_FIRST_IN_FLOAT = 4  # convolutions after the bank
_BATCH = 32


def export(safetensors: bytes, *, pixels: str = "uint8") -> bytes:
    """The graph of a detector, BatchNorm folded into the convolutions.

    Args:
      safetensors: the output of `convert.to_torch`.
      pixels: of the input, "uint8", 0 to 255, or "float32", 0 to 1.

    Returns:
      An ONNX model, checked: "pictures" [batch, height, width, 3] RGB -> "p_fake" [batch] float32,
      calibrated. Batch, height and width are dynamic.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.safetensors"
        file.write_bytes(safetensors)
        detector = torch_module.load(file)
    side = 112  # px; patches of 14 and of 16 px divide it
    example = torch.zeros((2, side, side, 3), dtype=getattr(torch, pixels))
    free = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # PyTorch's exporter triggers PyTorch's own deprecations
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            detector,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(free,),
            input_names=["pictures"],
            output_names=["p_fake"],
            verbose=False,
        )
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # the paths and lines of the exporting machine
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def quantize(model: bytes, detector: Detector, calibration_data: str) -> bytes:
    """The same graph with int8 convolutions: scales weights per channel, activations by 99.999% of
    their range.

    Parts that need more than 8 bits stay in float32: preprocessing, the Gabor bank and the first
    convolutions (the bank's responses to fine traces are a few steps of an 8-bit picture), the sums
    of the residual blocks, the classifier and the softmax. They are 4% of the file. In int8, a few
    strong edges used up the range there: log-odds were off by 0.24 (root mean square), now by 0.05
    (docs/DEPLOY.md).

    Args:
      model: the output of `export`.
      detector: what `model` was exported from.
      calibration_data: a data folder, or any folder of pictures; takes CALIBRATION_PICTURES, evenly
        spaced, from the Train split of a data folder.

    Raises:
      UserError: a vision transformer, since all its weights are in matrix products.
    """
    source = _calibration_source(calibration_data)
    batches = detector.batches(source, batch_size=_BATCH)
    pictures = (batch["image"][batch["mask"]] for batch in batches)
    reader = _Reader(pictures, _pixels(model))
    with tempfile.TemporaryDirectory() as name:
        plain, ready, quantized = (
            pathlib.Path(name) / f"{stage}.onnx" for stage in ("plain", "ready", "int8")
        )
        plain.write_bytes(model)
        quantization.quant_pre_process(plain, ready, skip_symbolic_shape=True)
        in_float = _sensitive(onnx.load(ready), detector.config.model.name)
        with contextlib.redirect_stdout(None):  # it prints its settings
            quantization.quantize_static(
                ready,
                quantized,
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=in_float,
                per_channel=True,
                calibrate_method=quantization.CalibrationMethod.Percentile,
                extra_options={"CalibPercentile": 99.999},
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        return quantized.read_bytes()


def _sensitive(model: onnx.ModelProto, name: str) -> list[str]:
    """Names of the convolutions that stay in float32: the Gabor bank, and the first of the rest."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    # found by the name of its taps; the optimiser may have added a prefix
    bank = [node for node in convolutions if any("gabor.weight" in name for name in node.input)]
    rest = [node for node in convolutions if node not in bank]
    if len(rest) <= _FIRST_IN_FLOAT:
        raise UserError(
            f"int8 is for networks of convolutions, and {name} has no more than {len(rest)}:"
            " --quantize=float16 halves its file"
        )
    return [node.name for node in bank + rest[:_FIRST_IN_FLOAT]]


def float16(model: bytes) -> bytes:
    """The same graph in float16, with unchanged inputs and outputs; the Gabor bank in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = onnx.load_from_string(model)
    bank = [n.name for n in graph.graph.node if any("gabor.weight" in name for name in n.input)]
    with warnings.catch_warnings():  # for each value that float16 rounds to zero
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(graph, keep_io_types=True, node_block_list=bank)
    return half.SerializeToString()


def print_accuracy_lost(
    model: bytes, smaller: bytes, detector: Detector, data: str, *, form: str = "int8"
) -> str | None:
    """Prints both models' accuracy and AUC on the Validation split, if `data` has one.

    Returns:
      The loss beyond `MOST_LOST`, in words; None if there is none, or it was not measured.
    """
    if not _is_data_folder(data, "Validation"):
        print(f"accuracy lost: not measured, {data} has no Validation split")
        return None
    source = sources.open_source(data, "Validation")
    before, after = (_measure(m, source, detector) for m in (model, smaller))
    print(
        f"accuracy on {len(source)} Validation pictures: float32 {before['accuracy']:.4f},"
        f" {form} {after['accuracy']:.4f}, lost {before['accuracy'] - after['accuracy']:+.4f}\n"
        f"AUC: float32 {before['auc']:.3f}, {form} {after['auc']:.3f}",
        flush=True,
    )
    lost = {name: before[name] - after[name] for name in MOST_LOST}
    beyond = [
        f"{lost[name]:.4f} of {name} (bound: {bound})"
        for name, bound in MOST_LOST.items()
        if lost[name] > bound
    ]
    if beyond and len(source) < _FEWEST_TO_JUDGE:
        print(f"too few pictures to judge by: {_FEWEST_TO_JUDGE} would do")
        return None
    return " and ".join(beyond) or None


def _measure(model: bytes, source: sources.Source, detector: Detector) -> dict[str, float]:
    """`metrics.binary_metrics` of the readable pictures; accuracy is at p_fake ≥ 0.5."""
    session = make_session(model)
    labels, p_fake = [], []
    for batch in detector.batches(source, batch_size=_BATCH):
        mask = batch["mask"]
        p_fake.append(run(session, batch["image"][mask]))
        labels.append(batch["label"][mask])
    p = np.clip(np.concatenate(p_fake).astype(np.float64), 1e-12, 1 - 1e-12)
    return metrics.binary_metrics(np.concatenate(labels), np.log(np.stack([p, 1 - p], axis=1)))


def make_session(model: bytes, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session on the CPU; `threads` 0 means one per core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, pictures: np.ndarray) -> np.ndarray:
    """[B, H, W, 3] uint8 -> [B] p_fake, for either pixel type of the model."""
    (given,) = session.get_inputs()
    return session.run(None, {"pictures": _as_input(pictures, given.type)})[0]


class _Reader(quantization.CalibrationDataReader):
    """Gives pictures to onnxruntime, one batch at a time."""

    def __init__(self, pictures: Iterator[np.ndarray], pixels: str):
        self._feeds = ({"pictures": _as_input(p, pixels)} for p in pictures if len(p))

    def get_next(self):
        return next(self._feeds, None)


def _as_input(pictures, pixels):
    return pictures if "uint8" in pixels else pictures.astype(np.float32) / 255


def _pixels(model: bytes) -> str:
    return make_session(model, threads=1).get_inputs()[0].type


def _calibration_source(folder: str) -> sources.Source:
    if _is_data_folder(folder, "Train"):
        source = sources.open_source(folder, "Train")
    else:
        path = pathlib.Path(folder).expanduser()
        if not path.is_dir():
            raise UserError(f"--calibration_data={folder}: no such folder")
        files = listing.pictures(str(path), listing.PassedOver())
        if not files:
            raise UserError(f"--calibration_data={folder}: no picture in it")
        source = sources.FileSource(files)
    spread = np.linspace(0, len(source) - 1, CALIBRATION_PICTURES).astype(int)
    return sources.Subset(source, np.unique(spread))


def _is_data_folder(folder: str, split: str) -> bool:
    try:
        return sources.has_split(folder, split)
    except UserError:
        return False
