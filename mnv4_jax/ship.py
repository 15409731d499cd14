"""Makes a detector the shipped one: python -m mnv4_jax.ship --checkpoint=runs/shipped

Writes mnv4_jax/shipped/detector.safetensors, which `predict`, `evaluate` and `convert` use without
--checkpoint. Exit status: 0 done, 2 an error that the user can fix.
"""

import sys

from input_pipeline import cli
from mnv4_jax.detector import boxed, saved


def main() -> None:
    parser = cli.ArgumentParser(
        prog="python -m mnv4_jax.ship", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--checkpoint", required=True, help="a workdir, or one checkpoint in it")
    args = parser.parse_args(sys.argv[1:])
    loaded = saved.load(args.checkpoint)
    if not loaded.calibration:
        raise cli.UserError(
            f"--checkpoint={args.checkpoint}: has no calibration;"
            " train it beside a Validation split"
        )
    boxed.write(boxed.FILE, loaded)
    print(f"wrote {boxed.FILE} ({boxed.FILE.stat().st_size / 1e6:.2f} MB) from {loaded.path}")


if __name__ == "__main__":
    cli.run(main)
