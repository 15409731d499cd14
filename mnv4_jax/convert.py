"""Exports a detector, or imports weights.

python -m mnv4_jax.convert --checkpoint=DIR --to=torch --out=model.safetensors
python -m mnv4_jax.convert --checkpoint=DIR --to=onnx --out=model.onnx
python -m mnv4_jax.convert --checkpoint=DIR --to=stablehlo --out=model.stablehlo
python -m mnv4_jax.convert [--checkpoint=DIR] --to=web --out=site/
python -m mnv4_jax.convert --from=timm --weights=FILE|hf:REPOSITORY --out=DIR

docs/DEPLOY.md explains each format and how to run it.
"""

import json
import os
import pathlib
import sys
from collections.abc import Sequence

from safetensors.numpy import save

from input_pipeline import cli
from input_pipeline.cli import UserError
from mnv4_jax import defaults
from mnv4_jax.detector import saved, weight_files
from mnv4_jax.detector.detector import Detector
from mnv4_jax.models import timm_keys


def main() -> None:
    args = parse(sys.argv[1:])
    if args.source:
        folder = import_weights(args.weights, args.out)
        print(f"wrote {folder}: start from it with --config.model.init_from={args.out}")
        return
    out = pathlib.Path(args.out).expanduser()
    if args.to != "web" and out.is_dir():
        raise UserError(f"--out={out}: is a folder; --to={args.to} writes a file: name one in it")
    detector = Detector.of(saved.load(args.checkpoint, raw=args.raw))
    if args.to == "torch":
        contents = to_torch(detector)
        write(out, contents)
        print(f"wrote {out} ({len(contents) / 2**20:.1f} MiB)")
    elif args.to == "stablehlo":
        from mnv4_jax.export import stablehlo

        contents = stablehlo.stablehlo(detector, pixels=args.input)
        write(out, contents)
        print(f"wrote {out} ({len(contents) / 2**20:.1f} MiB) for {', '.join(stablehlo.PLATFORMS)}")
    elif args.to == "web":
        from mnv4_jax.export import web

        # as `predict`: the shipped detector needs faces cut out of their photograph
        find_faces = args.checkpoint is None
        sizes = web.build(out, detector, to_torch(detector), find_faces=find_faces)
        on_disk, sent = (size / 1e6 for size in sizes)
        print(f"wrote {out} ({on_disk:.1f} MB, {sent:.1f} MB as sent with gzip)")
        print(f"to look at it: python -m http.server --bind=127.0.0.1 --directory={out}")
    else:
        from mnv4_jax.export import onnx as onnx_export

        contents = onnx_export.export(to_torch(detector), pixels=args.input)
        if args.quantize:
            data = args.calibration_data
            if args.quantize == "int8":
                smaller = onnx_export.quantize(contents, detector, data)
            else:
                smaller = onnx_export.float16(contents)
            lost = data and onnx_export.print_accuracy_lost(
                contents, smaller, detector, data, form=args.quantize
            )
            if lost and not args.force:
                raise UserError(
                    f"--quantize={args.quantize} loses {lost}: nothing was written; --force writes"
                    " it all the same"
                )
            contents = smaller
        write(out, contents)
        print(f"wrote {out} ({len(contents) / 2**20:.1f} MiB), opset {onnx_export.OPSET}")


def parse(argv: Sequence[str]):
    parser = cli.ArgumentParser(
        prog="python -m mnv4_jax.convert", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="a workdir, or one checkpoint in it; default: the detector in the box",
    )
    parser.add_argument("--to", choices=("torch", "onnx", "stablehlo", "web"))
    parser.add_argument("--raw", action="store_true", help="weights as trained, not averaged")
    parser.add_argument(
        "--input",
        choices=("uint8", "float32"),
        default="uint8",
        help="pixels that onnx and stablehlo take: 0 to 255 (default), or 0 to 1",
    )
    parser.add_argument(
        "--quantize",
        choices=("int8", "float16"),
        help="of onnx, a smaller file; int8 needs --calibration_data",
    )
    parser.add_argument(
        "--force", action="store_true", help="write it even if --quantize loses too much"
    )
    parser.add_argument(
        "--calibration_data",
        metavar="DIR",
        help="data folder: int8 ranges from its Train, accuracy lost on its Validation pictures;"
        " or a folder of pictures, for the ranges alone",
    )
    parser.add_argument("--from", dest="source", choices=("timm",))
    parser.add_argument("--weights", help="of timm: .safetensors, .pth or hf:OWNER/REPOSITORY")
    parser.add_argument(
        "--out", required=True, help="the file to write; with --from and of web, a folder"
    )
    args = parser.parse_args(argv)
    if args.source and args.checkpoint:
        parser.error("--checkpoint=DIR and --from=timm exclude each other")
    for flag, value, goes_with in (
        ("--to", args.to, not args.source),
        ("--weights", args.weights, args.source),
    ):
        if bool(value) != bool(goes_with):
            other = "a detector to export" if flag == "--to" else "--from"
            parser.error(f"{flag} is {'missing' if goes_with else f'of no use without {other}'}")
    if args.quantize and args.to != "onnx":
        parser.error("--quantize is of --to=onnx alone")
    if (args.quantize == "int8" and not args.calibration_data) or (
        args.calibration_data and not args.quantize
    ):
        parser.error("--quantize=int8 and --calibration_data=DIR go together")
    return args


def to_torch(detector: Detector) -> bytes:
    """A safetensors file that timm, `export/torch_module.py` and `import_weights` read.

    Its header holds, as JSON texts: "model", "labels", "normalisation", "image_size" (px, of
    evaluation), "gabor", "calibration", "step" and the whole "config".
    """
    config = detector.config
    mean, std = detector.model.normalisation
    header = {
        "model": config.model.name,
        "labels": detector.labels,
        "normalisation": {"mean": mean, "std": std},
        "image_size": detector.transform.size,
        "gabor": json.loads(config.gabor.to_json_best_effort()),
        "calibration": detector.calibration,
        "step": detector.step,
        "config": json.loads(config.to_json_best_effort()),
    }
    metadata = {"format": "pt"} | {key: json.dumps(value) for key, value in header.items()}
    return _in_order(save(timm_keys.to_timm(detector.model), metadata))


def _in_order(contents: bytes) -> bytes:
    """The same safetensors file with a sorted header: safetensors writes metadata in random order,
    but the same detector should give the same file."""
    length = int.from_bytes(contents[:8], "little")
    header = json.dumps(json.loads(contents[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + contents[8 + length :]


def import_weights(weights: str, out: str | os.PathLike) -> pathlib.Path:
    """Writes timm's weights, or a file of `to_torch`, as a checkpoint at step 0 in folder `out`.

    A file of `to_torch` keeps its config and calibration. For any other file, the shapes tell the
    variant, there is no Gabor bank, and a head of other than two classes starts fresh; a printed
    line says so.

    Returns:
      The step's folder.

    Raises:
      UserError: a file that cannot be read, of another model, or `out` holds a checkpoint.
    """
    out = pathlib.Path(out).expanduser()
    if (out / "checkpoints").is_dir():
        raise UserError(f"--out={out}: holds checkpoints already; name another folder")
    try:
        imported = weight_files.load(weights, defaults.get_config(), print)
    except UserError as error:
        raise UserError(f"--weights={error}") from None
    folder = saved.write_initial(out, imported.config, imported.weights)
    if imported.calibration:
        saved.save_calibration(folder, imported.calibration)
    return pathlib.Path(folder)


def write(path: pathlib.Path, contents: bytes) -> None:
    """Writes atomically: to a temporary file beside `path`, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(contents)
    part.replace(path)


if __name__ == "__main__":
    cli.run(main)
