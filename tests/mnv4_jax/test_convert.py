"""The command: what it writes, that others can run it, and what it says when it cannot."""

import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from input_pipeline.cli import UserError
from mnv4_jax import convert
from mnv4_jax.detector import saved as saved_lib
from mnv4_jax.detector import weight_files
from mnv4_jax.detector.detector import Detector
from mnv4_jax.models import classifier, timm_keys
from mnv4_jax.models import weights as weights_lib
from tests.golden import formula
from tests.mnv4_jax.models.test_timm_keys import detector_of, jax_logits, with_formula_weights

TEMPERATURE = 1.7
SIZE = 32


@pytest.fixture(scope="module")
def detector():
    # The formula's weights answer to noise as no trained ones do: with more gain, int8 is far off.
    gabor = {"gabor.mode": "concat", "gabor.gain": 10.0, "data.eval_image_size": SIZE}
    return detector_of(*with_formula_weights(**gabor), {"temperature": TEMPERATURE})


@pytest.fixture(scope="module")
def pictures():
    return formula.pictures(3, SIZE)


@pytest.fixture(scope="module")
def expected(detector, pictures):
    return np.asarray(jax.nn.softmax(jax_logits(detector.model, pictures) / TEMPERATURE))[:, 0]


@pytest.fixture(scope="module")
def workdir(detector, tmp_path_factory):
    """A checkpoint of the detector on disk."""
    folder = tmp_path_factory.mktemp("run")
    _, weights = weights_lib.split(detector.model)
    saved = saved_lib.write_initial(folder, detector.config, weights)
    saved_lib.save_calibration(saved, detector.calibration)
    return folder


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, args)])
    convert.main()


def error_of(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        convert.parse(args)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_to_torch_and_back_gives_the_same_checkpoint(workdir, tmp_path, monkeypatch, capsys):
    file, back = tmp_path / "new" / "model.safetensors", tmp_path / "back"
    run(monkeypatch, f"--checkpoint={workdir}", "--to=torch", f"--out={file}")
    run(monkeypatch, "--from=timm", f"--weights={file}", f"--out={back}")
    assert f"--config.model.init_from={back}" in capsys.readouterr().out
    before, after = Detector(workdir), Detector(back)
    assert convert.to_torch(before) == convert.to_torch(after)
    assert after.calibration == {"temperature": TEMPERATURE}
    with pytest.raises(UserError, match="holds checkpoints already"):
        run(monkeypatch, "--from=timm", f"--weights={file}", f"--out={back}")


def test_raw_converts_the_weights_as_trained(detector, tmp_path, monkeypatch):
    _, ema = weights_lib.split(detector.model)
    trained = jax.tree.map(lambda x: np.asarray(x) + 1, ema)
    items = saved_lib.to_save(
        0, {"weights": trained, "ema": ema}, saved_lib.make_meta(detector.config)
    )
    with ocp.CheckpointManager(tmp_path / "run" / "checkpoints") as manager:
        manager.save(0, args=items)
    kernels = []
    for flags in ([], ["--raw"]):
        file = tmp_path / f"model{len(flags)}.safetensors"
        run(monkeypatch, f"--checkpoint={tmp_path / 'run'}", "--to=torch", f"--out={file}", *flags)
        kernels.append(load_file(file)["conv_stem.weight"])
    expected = timm_keys.to_timm(detector.model)["conv_stem.weight"]
    np.testing.assert_array_equal(kernels[0], expected)
    np.testing.assert_array_equal(kernels[1], expected + 1)


def test_input_says_which_pixels_the_program_takes(
    workdir, pictures, expected, tmp_path, monkeypatch
):
    file = tmp_path / "model.stablehlo"
    flags = [f"--checkpoint={workdir}", "--to=stablehlo", f"--out={file}"]
    run(monkeypatch, *flags, "--input=float32")  # uint8 is the default
    program = jax.export.deserialize(file.read_bytes())
    assert program.in_avals[0].dtype == np.float32
    pixels = pictures.astype(np.float32) / 255
    np.testing.assert_allclose(program.call(pixels), expected, atol=1e-4)


def test_imagenet_weights_come_in_with_a_fresh_head_and_that_is_said(tmp_path, capsys):
    _, model = with_formula_weights()
    tensors = timm_keys.to_timm(model)
    tensors["classifier.weight"] = np.ones((1000, 1280), np.float32)
    tensors["classifier.bias"] = np.ones(1000, np.float32)
    tensors["bn1.num_batches_tracked"] = np.array(5)
    save_file(tensors, tmp_path / "imagenet.safetensors", {"format": "pt"})
    convert.import_weights(str(tmp_path / "imagenet.safetensors"), tmp_path / "run")
    assert capsys.readouterr().out == "the head has 1000 classes: it starts fresh with 2\n"
    imported = saved_lib.load(tmp_path / "run")
    assert imported.config.model.name == "mobilenetv4_conv_small_035"
    assert imported.config.gabor.mode == "none"
    ours = timm_keys.to_timm(imported.model)
    assert ours["classifier.weight"].shape == (2, 1280)
    np.testing.assert_array_equal(ours["conv_head.weight"], tensors["conv_head.weight"])


@pytest.mark.parametrize(
    "metadata",
    [{"config": "resnet50"}, {"config": '{"depths": [2, 2]}', "author": "someone"}],
)
def test_a_config_of_other_software_is_not_taken_for_ours(tmp_path, metadata):
    _, model = with_formula_weights()
    file = tmp_path / "foreign.safetensors"
    save_file(timm_keys.to_timm(model), file, metadata)
    convert.import_weights(str(file), tmp_path / "run")
    imported = saved_lib.load(tmp_path / "run")
    assert imported.config.model.name == "mobilenetv4_conv_small_035"
    assert imported.calibration is None


@pytest.mark.torch
def test_a_pth_file_is_read_as_weights_and_never_run(tmp_path):
    torch = pytest.importorskip("torch")
    _, model = with_formula_weights()
    tensors = timm_keys.to_timm(model)
    state = {k: torch.tensor(v) for k, v in tensors.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pth")
    read, header = weight_files.read(str(tmp_path / "model.pth"))
    assert header == {} and read.keys() == tensors.keys()
    np.testing.assert_array_equal(read["conv_stem.weight"], tensors["conv_stem.weight"])

    half = {k: torch.nn.Parameter(v.bfloat16()) for k, v in state.items() if v.is_floating_point()}
    torch.save(half, tmp_path / "half.pth")
    read, _ = weight_files.read(str(tmp_path / "half.pth"))
    np.testing.assert_allclose(read["conv_stem.weight"], tensors["conv_stem.weight"], rtol=4e-3)

    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('the pickle was run')",)

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match=r"bomb\.pth: not a file of weights alone"):
        weight_files.read(str(tmp_path / "bomb.pth"))


def test_stablehlo_runs_on_any_batch_with_jax_alone(detector, pictures, expected, tmp_path):
    from mnv4_jax.export import stablehlo

    contents = stablehlo.stablehlo(detector)
    program = jax.export.deserialize(contents)
    assert program.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(program.call(pictures), expected, atol=1e-4)
    file = tmp_path / "model.stablehlo"
    file.write_bytes(contents)
    np.save(tmp_path / "pictures.npy", pictures[:2])
    script = (
        "import sys, jax.export, numpy as np\n"
        "sys.modules['mnv4_jax'] = sys.modules['flax'] = None\n"
        f"program = jax.export.deserialize(open({str(file)!r}, 'rb').read())\n"
        f"print(*program.call(np.load({str(tmp_path / 'pictures.npy')!r})))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    np.testing.assert_allclose([float(p) for p in printed.split()], expected[:2], atol=1e-4)


@pytest.mark.onnx
def test_quantize_and_input_say_what_onnx_is_written(workdir, tmp_path, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for split in ("Train", "Validation"):
        for seed, name in enumerate(("Fake", "Real")):
            (tmp_path / split / name).mkdir(parents=True)
            for i, picture in enumerate(formula.pictures(2, SIZE, seed=seed)):
                Image.fromarray(picture).save(tmp_path / split / name / f"{i}.png")
    file = tmp_path / "int8.onnx"
    int8 = ["--quantize=int8", f"--calibration_data={tmp_path}", "--input=float32"]
    run(monkeypatch, f"--checkpoint={workdir}", "--to=onnx", *int8, f"--out={file}")
    assert "accuracy on 4 Validation pictures" in capsys.readouterr().out
    model = onnx.load(file)
    assert "DequantizeLinear" in [node.op_type for node in model.graph.node]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.onnx
def test_float16_is_half_as_large_and_close_and_a_loss_is_refused_unless_forced(
    onnx_model, workdir, expected, pictures, tmp_path, monkeypatch, capsys
):
    from mnv4_jax.export import onnx as onnx_export

    half = onnx_export.float16(onnx_model)
    assert len(half) < 0.6 * len(onnx_model)
    p_fake = onnx_export.run(onnx_export.make_session(half), pictures)
    assert p_fake.dtype == np.float32
    assert 1e-7 < np.abs(p_fake - expected).max() < 0.02

    for seed, name in enumerate(("Fake", "Real")):
        (tmp_path / "Validation" / name).mkdir(parents=True)
        for i, picture in enumerate(formula.pictures(2, SIZE, seed=seed)):
            Image.fromarray(picture).save(tmp_path / "Validation" / name / f"{i}.png")
    file = tmp_path / "half.onnx"
    flags = ["--to=onnx", "--quantize=float16", f"--calibration_data={tmp_path}", f"--out={file}"]
    monkeypatch.setattr(onnx_export, "MOST_LOST", {"accuracy": -2.0})  # any loss is too much
    run(monkeypatch, f"--checkpoint={workdir}", *flags)
    assert "too few pictures to judge by" in capsys.readouterr().out
    file.unlink()
    monkeypatch.setattr(onnx_export, "_FEWEST_TO_JUDGE", 1)
    with pytest.raises(UserError, match=r"float16 loses .* of accuracy .*: nothing was written"):
        run(monkeypatch, f"--checkpoint={workdir}", *flags)
    assert not file.exists()
    run(monkeypatch, f"--checkpoint={workdir}", *flags, "--force")
    assert file.read_bytes() == half


@pytest.fixture(scope="module")
def onnx_model(detector):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from mnv4_jax.export import onnx as onnx_export

    return onnx_export.export(convert.to_torch(detector))


@pytest.mark.onnx
def test_onnx_answers_the_same_for_any_batch_and_size(onnx_model, detector, pictures, expected):
    from mnv4_jax.export import onnx as onnx_export

    session = onnx_export.make_session(onnx_model, threads=1)
    p_fake = onnx_export.run(session, pictures)
    assert np.abs(p_fake - expected).max() <= 1e-4
    margin = TEMPERATURE * (np.log(p_fake) - np.log1p(-p_fake))
    logits = jax_logits(detector.model, pictures)
    assert np.abs(margin - (logits[:, 0] - logits[:, 1])).max() <= 1e-4
    assert onnx_export.run(session, formula.pictures(1, 50)).shape == (1,)


@pytest.mark.onnx
def test_onnx_has_batch_norm_folded_in_and_no_path_of_this_machine(onnx_model):
    import onnx

    model = onnx.load_from_string(onnx_model)
    kinds = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("Softmax") == 1
    assert [opset.version for opset in model.opset_import if not opset.domain] == [20]
    (pictures,) = model.graph.input
    assert pictures.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert convert.__file__.rsplit("/", 2)[0].encode() not in onnx_model


@pytest.mark.onnx
@pytest.mark.slow
def test_onnx_takes_float_pixels_too(detector, pictures, expected):
    pytest.importorskip("onnxruntime")
    from mnv4_jax.export import onnx as onnx_export

    model = onnx_export.export(convert.to_torch(detector), pixels="float32")
    session = onnx_export.make_session(model, threads=1)
    assert session.get_inputs()[0].type == "tensor(float)"
    assert np.abs(onnx_export.run(session, pictures) - expected).max() <= 1e-4


@pytest.mark.onnx
def test_int8_stays_close_keeps_the_bank_in_float_and_says_what_it_costs(
    onnx_model, detector, tmp_path, capsys, expected, pictures
):
    import onnx

    from mnv4_jax.export import onnx as onnx_export

    for split, name, seed in (
        ("Train", "Fake", 1), ("Train", "Real", 2), ("Validation", "Fake", 3),
        ("Validation", "Real", 4),
    ):  # fmt: skip
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        for i, picture in enumerate(formula.pictures(4, SIZE, seed=seed)):
            Image.fromarray(picture).save(folder / f"{i}.png")
    quantized = onnx_export.quantize(onnx_model, detector, str(tmp_path))
    assert len(quantized) < 0.5 * len(onnx_model)
    p_fake = onnx_export.run(onnx_export.make_session(quantized), pictures)
    assert 1e-6 < np.abs(p_fake - expected).max() < 0.1
    for node in onnx.load_from_string(quantized).graph.node:
        if node.op_type == "Conv" and any("gabor.weight" in name for name in node.input):
            assert not any("Dequantize" in name for name in node.input[:2])
            break
    else:
        pytest.fail("there is no Gabor convolution")
    onnx_export.print_accuracy_lost(onnx_model, quantized, detector, str(tmp_path))
    said = capsys.readouterr().out
    float32, int8, lost = map(float, re.findall(r"[-+]?\d\.\d{4}", said))
    assert said.startswith("accuracy on 8 Validation pictures:")
    assert abs(lost - (float32 - int8)) < 1e-6
    onnx_export.print_accuracy_lost(
        onnx_model, quantized, detector, str(tmp_path / "Train" / "Fake")
    )
    assert "not measured" in capsys.readouterr().out


def test_nothing_but_its_own_paths_imports_torch(workdir, tmp_path):
    script = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "from input_pipeline import cli\n"
        "from mnv4_jax import convert\n"
        "cli.run(convert.main)"
    )

    def convert_to(target):
        command = [sys.executable, "-c", script, f"--checkpoint={workdir}", f"--to={target}"]
        return subprocess.run(
            [*command, f"--out={tmp_path / target}"], capture_output=True, text=True
        )

    assert convert_to("torch").returncode == 0
    assert (tmp_path / "torch").read_bytes() == convert.to_torch(Detector(workdir))
    refused = convert_to("onnx")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "needs the extra `onnx`: pip install 'mnv4_jax[onnx]'" in refused.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out=x"], "--to is missing"),
        (["--checkpoint=a", "--from=timm", "--out=x"], "--checkpoint=DIR and --from=timm exclude"),
        (["--checkpoint=a", "--out=x"], "--to is missing"),
        (["--from=timm", "--out=x"], "--weights is missing"),
        (["--from=timm", "--weights=w", "--to=torch", "--out=x"], "--to is of no use without"),
        (["--checkpoint=a", "--to=torch"], "--out"),
        (["--checkpoint=a", "--to=tflite", "--out=x"], "tflite"),
        (["--checkpoint=a", "--to=torch", "--quantize=int8", "--out=x"], "--to=onnx alone"),
        (["--checkpoint=a", "--to=onnx", "--quantize=int8", "--out=x"], "go together"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(capsys, args, message):
    assert message in error_of(capsys, *args)


@pytest.mark.parametrize("to", ["torch", "onnx", "stablehlo"])
def test_a_folder_as_the_file_to_write_is_said_before_the_work(tmp_path, monkeypatch, to):
    with pytest.raises(UserError, match=rf"--out={tmp_path}: is a folder; --to={to} writes a file"):
        run(monkeypatch, f"--checkpoint={tmp_path}", f"--to={to}", f"--out={tmp_path}")
    assert not list(tmp_path.parent.glob("*.part"))


@pytest.mark.parametrize("name", ["missing.safetensors", "text.safetensors"])
def test_a_file_that_is_not_weights_is_named(tmp_path, name):
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(UserError, match=re.escape(name)):
        weight_files.read(str(tmp_path / name))


def test_a_model_that_starts_from_converted_weights_has_them(workdir):
    """What `model.init_from` does with the folder that `--from=timm` wrote."""
    from mnv4_jax.models.init_from import transfer

    source = saved_lib.load(workdir)
    config = source.config.copy_and_resolve_references()
    config.gabor.mode = "none"
    fresh = weights_lib.split(classifier.build(config, seed=5))[1]
    params, stats, notes = transfer(
        fresh["params"], fresh["stats"], source.weights["params"], source.weights["stats"]
    )
    assert notes == ["backbone.conv_stem.kernel: 8 input channels of the source are dropped"]
    head = dict(nnx.to_flat_state(params))["backbone", "conv_head", "kernel"]
    expected = source.model.backbone.conv_head.kernel[...]
    np.testing.assert_array_equal(head, expected)
    jax.tree.map(np.testing.assert_array_equal, stats, source.weights["stats"])
