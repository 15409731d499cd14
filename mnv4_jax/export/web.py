"""A folder of static files that run a detector in the browser: the page of `serve`, the detector
and the face finder as ONNX, and onnxruntime's WebAssembly from its npm package."""

import base64
import gzip
import hashlib
import importlib.metadata
import json
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipeline import cache, decode, faces, transforms
from input_pipeline.cli import UserError
from mnv4_jax.detector import views
from mnv4_jax.detector.detector import Detector
from mnv4_jax.export import onnx as onnx_export
from mnv4_jax.export.onnx import onnx, onnxruntime

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
_RUNTIME_SHA512 = (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
_RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
_OURS = pathlib.Path(__file__).with_name("web_page")
# The same files that `serve` sends, except `answers.js`.
_PAGE = pathlib.Path(__file__).parents[1] / "serving" / "static"
_PAGE_FILES = ("index.html", "page.css", "page.js", "icon.svg")
_MADE = ("detector.onnx", "centerface.onnx", "model.json", "LICENSES.txt")
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self';"
    " img-src 'self' blob: data:; connect-src 'self'; worker-src 'self'; base-uri 'none';"
    " form-action 'none'"
)
_KEPT_FLOAT32 = 1024  # smaller arrays save nothing
_MIT = faces.MODEL.with_name("LICENSE")


def build(
    out: pathlib.Path, detector: Detector, safetensors: bytes, *, find_faces: bool
) -> tuple[int, int]:
    """Writes the folder; replaces one that it made before, and only when all is written.

    Args:
      out: the folder.
      detector: the detector.
      safetensors: the output of `convert.to_torch` for it.
      find_faces: cut out the faces of photographs first, see `views.face_views`.

    Returns:
      Bytes of its files, and of the same files compressed by gzip, as a server sends them.

    Raises:
      UserError: `out` has other files in it, or the runtime is not available.
    """
    ours = {*_RUNTIME_FILES, *_PAGE_FILES, *_MADE, *(file.name for file in _OURS.glob("*.js"))}
    if out.is_file() or (out.is_dir() and {file.name for file in out.iterdir()} - ours):
        raise UserError(f"--out={out}: has other files in it; name a new folder")
    files = _runtime()  # first, since it may be missing
    files |= {name: (_PAGE / name).read_bytes() for name in _PAGE_FILES}
    charset = b'<meta charset="utf-8">\n'
    policy = f'<meta http-equiv="content-security-policy" content="{_POLICY}">\n'.encode()
    files["index.html"] = files["index.html"].replace(charset, charset + policy)
    files |= {file.name: file.read_bytes() for file in _OURS.glob("*.js")}
    files["detector.onnx"] = pack(onnx_export.export(safetensors))
    if find_faces:
        files["centerface.onnx"] = pack(_face_finder())
    files["model.json"] = json.dumps(facts(detector, find_faces=find_faces), indent=1).encode()
    files["LICENSES.txt"] = _licences().encode()
    files["sw.js"] = _versioned(files)

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, contents in files.items():
        (part / name).write_bytes(contents)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    part.replace(out)
    shutil.rmtree(old, ignore_errors=True)
    sent = sum(len(gzip.compress(contents, 6)) for contents in files.values())
    return sum(map(len, files.values())), sent


def facts(detector: Detector, *, find_faces: bool) -> dict[str, Any]:
    """The content of `model.json`: that of the server's `/v1/model`, and every number that the
    scripts share with `input_pipeline`."""
    transform = detector.transform
    return {
        "labels": detector.labels,
        "thresholds": detector.thresholds,
        "image_size_px": detector.config.data.image_size,
        "faces": find_faces,
        "versions": {"mnv4_jax": importlib.metadata.version("mnv4_jax"), RUNTIME: RUNTIME_VERSION},
        "most_pixels": decode.MAX_PIXELS,
        "view": {
            "size": transform.size,
            "shorter_px": transform.shorter_px,
            "crop": transform.crop,
            "least_px": detector.least_px,
            "flat_levels": transforms.FLAT_LEVELS,
        },
        "finder": {
            "margin": faces.MARGIN,
            "min_confidence": faces.MIN_CONFIDENCE,
            "max_overlap": faces.MAX_OVERLAP,
            "searched_px": faces.SEARCHED_PX,
            "smallest_px": faces.SMALLEST_PX,
            "stride": faces.STRIDE,
            "filled": views.FILLED,
        },
    }


def pack(model: bytes) -> bytes:
    """The same ONNX graph with its large arrays stored in float16, computed in float32.

    This halves the bytes; onnxruntime converts them back once, when it loads the file. The Gabor
    taps stay in float32, since they must sum to zero.
    """
    graph = onnx.load_from_string(_folded(model))
    for array in list(graph.graph.initializer):
        values = onnx.numpy_helper.to_array(array)
        if values.dtype != np.float32 or values.size < _KEPT_FLOAT32 or "gabor" in array.name:
            continue
        name = array.name
        half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.float16")
        array.CopyFrom(half)
        cast = onnx.helper.make_node("Cast", [half.name], [name], to=onnx.TensorProto.FLOAT)
        graph.graph.node.insert(0, cast)
    onnx.checker.check_model(graph, full_check=True)
    return graph.SerializeToString()


def _folded(model: bytes) -> bytes:
    """Computes constants and folds BatchNorm, in standard operators, so that no browser has to."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return file.read_bytes()


def _face_finder() -> bytes:
    """CenterFace for pictures of any size, with its weights as constants."""
    model = onnx.load(faces.MODEL)
    constants = {array.name for array in model.graph.initializer}
    for value in [v for v in model.graph.input if v.name in constants]:
        model.graph.input.remove(value)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for i, name in enumerate(("batch", None, "height", "width")):
            if name:
                value.type.tensor_type.shape.dim[i].dim_param = f"{value.name}_{name}"
    return model.SerializeToString()


def package() -> pathlib.Path:
    """The path of the runtime's npm package; need not exist."""
    return cache.root() / "npm" / f"{RUNTIME}-{RUNTIME_VERSION}.tgz"


def _runtime() -> dict[str, bytes]:
    """onnxruntime's scripts and WebAssembly, from the npm package with the expected digest."""
    file = package()
    if not file.is_file():
        _download(file)
    data = file.read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != _RUNTIME_SHA512:
        raise UserError(
            f"{file}: is not {RUNTIME} {RUNTIME_VERSION} (its digest differs): remove it"
        )
    with tarfile.open(file) as archive:
        return {name: archive.extractfile(f"package/dist/{name}").read() for name in _RUNTIME_FILES}


def _download(file: pathlib.Path) -> None:
    npm = shutil.which("npm")
    wanted = f"{RUNTIME}@{RUNTIME_VERSION}"
    if npm is None:
        raise UserError(f"--to=web needs npm, which fetches {wanted}: install Node.js")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        done = subprocess.run(
            [npm, "pack", wanted, "--silent"], cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
            raise UserError(f"--to=web: npm cannot fetch {wanted}: {reason}")
        (pathlib.Path(folder) / done.stdout.split()[-1]).replace(file)


def _versioned(files: Mapping[str, bytes]) -> bytes:
    """`sw.js` with the list of files and their common version filled in."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    names = ["./", *sorted(set(files) - {"sw.js"})]
    head = f'const VERSION = "{digest.hexdigest()[:16]}", FILES = {json.dumps(names)};\n'
    return head.encode() + files["sw.js"]


def _licences() -> str:
    mit = _MIT.read_text()
    terms = mit[mit.index("Permission is hereby granted") :]
    return (
        "The page and the detector: mnv4_jax, Apache License 2.0.\n\n"
        f"ort*: {RUNTIME} {RUNTIME_VERSION}, MIT License.\n"
        f"Copyright (c) Microsoft Corporation\n\n{terms}\n\ncenterface.onnx:\n{mit}"
    )
