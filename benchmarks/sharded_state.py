"""Memory of a run's state on each device, whole and split (`train.shard_state`):

    python benchmarks/sharded_state.py [--model=vit_large_patch14_clip_224] [--devices=1,4,8]

Predicted from the number of parameters, and as reported by XLA for the compiled step on as many
simulated devices. Compiles one step for each row and form, and runs none.
"""

import argparse
import os
import subprocess
import sys

MIB = 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_large_patch14_clip_224")
    parser.add_argument("--devices", default="1,4,8")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)  # devices, split
    args = parser.parse_args()
    if args.row:
        print(measure(args.model, int(args.row[0]), args.row[1] == "True"))
        return
    print(f"{args.model}, MiB a device\n")
    print("| devices | state | predicted | arguments of the step | its temporaries, one picture |")
    print("| --- | --- | --- | --- | --- |")
    for devices in args.devices.split(","):
        for split in (False, True) if devices != "1" else (False,):
            # The number of simulated devices is fixed when JAX starts.
            done = subprocess.run(
                [sys.executable, __file__, f"--model={args.model}", "--row", devices, str(split)],
                env=os.environ | {"JAX_NUM_CPU_DEVICES": devices, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            print(f"| {devices} | {'split' if split else 'whole'} | {done.stdout.strip()} |")


def measure(model, devices, split):
    """ "predicted | arguments | temporaries", MiB."""
    import jax

    from configs import small
    from mnv4_jax.runtime.mesh import batch_sharding, make_mesh
    from mnv4_jax.training.step import Program

    config = small.get_config()
    config.model.name, config.gabor.mode = model, "none"
    config.train.batch_size, config.train.shard_state = devices, split
    mesh = make_mesh()
    program = Program(config, mesh, 1e-3)
    parameters = sum(x.size for x in jax.tree.leaves(program.like))
    # Weights, their average and two moments, float32.
    predicted = 4 * 4 * parameters / (devices if split else 1)
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(program.init, program.like),
        program.shardings(),
    )
    side = config.data.image_size
    batch = {
        name: jax.ShapeDtypeStruct((devices, *shape), dtype, sharding=batch_sharding(mesh))
        for name, shape, dtype in (
            ("image", (side, side, 3), "uint8"),
            ("label", (), "int32"),
            ("position", (), "uint32"),
        )
    }
    step = jax.jit(program.step, donate_argnums=0, out_shardings=(program.shardings(), None))
    found = step.lower(state, batch).compile().memory_analysis()
    sizes = (predicted, found.argument_size_in_bytes, found.temp_size_in_bytes)
    return " | ".join(f"{size / MIB:,.0f}" for size in sizes)


if __name__ == "__main__":
    main()
