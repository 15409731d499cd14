"""Predicts the cost of a step on many devices: by arithmetic, and by compiling for 256 chips.

    python benchmarks/scaling.py [--per_device=64] [--image_size=224]
        [--compile] [--topology=v5e:16x16] [--batch_norm=global|local] [--config=configs/small.py]

Prints the tables of docs/SCALING.md. The arithmetic counts the work of the config's network and
divides it by published rates; it takes seconds. --compile compiles the real training step ahead of
time for a TPU slice, without one, and reads from the result its collectives and the memory per
chip; it runs nothing. It needs the extra `tpu` (libtpu, no TPU) and many minutes on 2 cores.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU host to ask
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nor a TPU for two processes to compete for

import argparse
import dataclasses
import math
import re
import runpy
import time
from collections import Counter

import jax
import jax.extend
import numpy as np
from flax import nnx
from jax.experimental import topologies
from ml_collections import ConfigDict

from input_pipeline import cli
from mnv4_jax.models import classifier
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.models.layers import BatchNorm
from mnv4_jax.ops import conv
from mnv4_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from mnv4_jax.training import flops
from mnv4_jax.training.step import Program

# Memory traffic of one element of a convolution's output, in passes over it. Forward: write, read
# for the statistics, read and write to normalise, read by the next layer: 5. Backward: read the
# gradient and output for BatchNorm's sums and again for its result, write that, read it twice for
# the convolution's two gradients, which also read the input and write: 9.
PASSES = 14
BF16 = 2
F32 = 4
JPEG_KIB = 12  # a 256 px face at quality 75 to 95
DECODED_PER_CORE_S = 880  # images/s, 14,085 on 16 cores end to end: docs/PERFORMANCE.md


@dataclasses.dataclass(frozen=True)
class Machine:
    """Published rates; sources in docs/SCALING.md."""

    name: str
    chips: int
    flops_s: float  # bf16, dense, a chip
    memory_bytes_s: float  # a chip
    reduce_latency_s: float  # of one all-reduce of a few kB over all chips
    reduce_bytes_s: float  # of a large all-reduce: 2 S / this is its time
    host_chips: int
    host_cores: int  # vCPUs


HOP_S = 1e-6  # between neighbours on ICI
MACHINES = (
    # An all-reduce on a torus goes along one axis after the other, there and back; a 2x4 slice has
    # no wrap-around links (1 + 3 hops), a 16x16 one has (8 + 8).
    Machine("v5e-8", 8, 197e12, 819e9, 2 * (1 + 3) * HOP_S, 4.5e10, 8, 224),
    Machine("v5e-256", 256, 197e12, 819e9, 2 * (8 + 8) * HOP_S, 2 * 9e10, 4, 112),
    Machine("8×H100", 8, 989e12, 3350e9, 25e-6, 450e9, 8, 208),
)


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of the network for one picture, and the size of its state."""

    flops: float  # forward and backward
    elements: float  # outputs of all convolutions, forward
    parameters: int
    statistics: int
    norms: int  # BatchNorm layers

    def checkpoint_bytes(self) -> int:
        """Weights, EMA, two moments of Adam; statistics and their EMA; all float32."""
        return F32 * (4 * self.parameters + 2 * self.statistics)


def main() -> None:
    parser = cli.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", default="configs/small.py", help="whose network")
    parser.add_argument("--per_device", type=int, default=64, help="pictures a chip")
    parser.add_argument("--image_size", type=int, default=224, help="px")
    parser.add_argument("--compile", action="store_true", help="ahead of time, for --topology")
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--batch_norm", default="global", choices=["global", "local"])
    flags = parser.parse_args()
    config = runpy.run_path(flags.config)["get_config"]()
    config.data.image_size = flags.image_size
    config.model.batch_norm = flags.batch_norm
    work = count(config)
    print_work(work, flags)
    print_machines(work, flags)
    if flags.compile:
        print_compiled(config, work, flags)


def count(config: ConfigDict) -> Work:
    """The network's work, from the jaxpr of its forward pass on one picture."""
    model = classifier.build(config, seed=0)
    graphdef, weights = weights_lib.split(model)
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    with conv.use(conv.NATIVE):
        jaxpr = jax.make_jaxpr(lambda x: weights_lib.eval_step(weights, x, graphdef=graphdef))(
            image
        )
    elements = sum(
        math.prod(equation.outvars[0].aval.shape)
        for equation in flops.equations(jaxpr.jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    )
    return Work(
        flops=flops.per_image(config),
        elements=elements,
        parameters=sum(x.size for x in jax.tree.leaves(weights["params"])),
        statistics=sum(x.size for x in jax.tree.leaves(weights["stats"])),
        norms=sum(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(model)),
    )


def print_work(work: Work, flags: argparse.Namespace) -> None:
    size = flags.image_size
    rows = [
        ("parameters", f"{work.parameters:,}"),
        ("FLOPs a picture, forward and backward", f"{work.flops / 1e9:.2f} G"),
        (
            "memory traffic a picture, bf16, no fusion beyond a layer",
            f"{work.elements * PASSES * BF16 / 2**20:.0f} MiB",
        ),
        ("gradients reduced a step, float32", f"{work.parameters * F32 / 2**20:.1f} MiB"),
        ("all-reduces a step, global BatchNorm", f"{2 * work.norms + 1}"),
        ("all-reduces a step, local BatchNorm", "1"),
        ("BatchNorm statistics, all layers", f"{work.statistics * F32 / 2**10:.0f} KiB"),
        ("a checkpoint", f"{work.checkpoint_bytes() / 2**20:.1f} MiB"),
        ("a picture read from disk, about", f"{JPEG_KIB} KiB"),
        ("a picture sent to the device", f"{size * size * 3 / 2**10:.0f} KiB"),
    ]
    print(f"\n{size} px pictures\n\n| what | how much |\n| --- | --- |")
    for row in rows:
        print("| {} | {} |".format(*row))


def print_machines(work: Work, flags: argparse.Namespace) -> None:
    print(f"\n{flags.per_device} pictures a chip, {flags.image_size} px\n")
    print(
        "| | global batch | compute ms | memory ms | gradients ms | BatchNorm global ms "
        "| step ms, global / local | efficiency, global / local | images/s, local | MB/s a host: "
        "from disk, to its chips | decode cores a host: needed, there |"
    )
    print("|" + " --- |" * 11)
    for machine in MACHINES:
        batch = flags.per_device
        compute = work.flops * batch / machine.flops_s
        memory = work.elements * PASSES * BF16 * batch / machine.memory_bytes_s
        alone = max(compute, memory)  # a single chip
        one = 2 * work.parameters * F32 / machine.reduce_bytes_s + machine.reduce_latency_s
        norms = 2 * work.norms * machine.reduce_latency_s
        steps = {"global": alone + one + norms, "local": alone + one}
        images = batch / steps["local"] * machine.host_chips  # per host and second
        sent = flags.image_size**2 * 3
        print(
            f"| {machine.name} | {batch * machine.chips:,} | {compute * 1e3:.2f} "
            f"| {memory * 1e3:.1f} | {one * 1e3:.2f} | {norms * 1e3:.2f} "
            f"| {steps['global'] * 1e3:.1f} / {steps['local'] * 1e3:.1f} "
            f"| {alone / steps['global']:.0%} / {alone / steps['local']:.0%} "
            f"| {batch * machine.chips / steps['local']:,.0f} "
            f"| {images * JPEG_KIB * 1024 / 1e6:,.0f}, {images * sent / 1e6:,.0f} "
            f"| {images / DECODED_PER_CORE_S:.0f}, {machine.host_cores} |"
        )


def print_compiled(config: ConfigDict, work: Work, flags: argparse.Namespace) -> None:
    """Compares the training step, compiled for a TPU slice, with the figures above."""
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=flags.topology)
    except Exception as error:  # libtpu is missing or fails, without its own error class
        raise cli.UserError(
            f"--topology={flags.topology} cannot be compiled for: {error} "
            "(it needs pip install -e '.[tpu]')"
        ) from error
    mesh = make_mesh(slice_.devices)
    config.model.dtype = "bfloat16"  # what "auto" means on a TPU
    start = time.perf_counter()
    compiled = compile_step(config, mesh, flags.per_device)
    seconds = time.perf_counter() - start
    found = collectives(compiled.as_text())
    reduces = found.pop("all-reduce", [])
    memory = compiled.memory_analysis()
    is_global = flags.batch_norm == "global"
    expected = 2 * work.norms + 1 if is_global else 1
    # Global: both moments and both of their gradients; local: the running statistics once.
    n_bytes = F32 * (work.parameters + (2 if is_global else 1) * work.statistics)
    arguments = work.checkpoint_bytes() + flags.per_device * flags.image_size**2 * 3
    kept = work.elements * BF16 * 2 * flags.per_device
    total = Counter()
    for sizes in reduces:
        total.update(sizes)
    reduced = ", ".join(f"{dtype} {n / 2**10:,.1f}" for dtype, n in total.items())
    others = ", ".join(f"{len(sizes)} {name}" for name, sizes in found.items()) or "none"
    print(
        f"\ncompiled for {flags.topology} ({mesh.size} chips), {flags.batch_norm} BatchNorm, "
        f"{flags.per_device} pictures a chip, bfloat16, in {seconds:.0f} s\n"
    )
    print("| | predicted | compiled |\n| --- | --- | --- |")
    rows = [
        ("all-reduces", expected, len(reduces)),
        ("other collectives", "none", others),
        ("KiB reduced", f"f32 {n_bytes / 2**10:,.1f}", reduced),
        (
            "MiB a chip, state and batch",
            f"{arguments / 2**20:.0f}",
            f"{memory.argument_size_in_bytes / 2**20:.0f}",
        ),
        (
            "MiB a chip, kept for the backward pass",
            f"{kept / 2**20:.0f}",
            f"{memory.temp_size_in_bytes / 2**20:.0f}",
        ),
    ]
    for row in rows:
        print("| {} | {} | {} |".format(*row))


def compile_step(
    config: ConfigDict, mesh: jax.sharding.Mesh, per_device: int
) -> jax.stages.Compiled:
    """The training step for the devices of `mesh`, from shapes alone."""
    program = Program(config, mesh, 1e-3)
    state = jax.eval_shape(program.init, program.like)
    everywhere, split = replicated(mesh), batch_sharding(mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
    )
    count, size = per_device * mesh.size, config.data.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((count, size, size, 3), np.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct((count,), np.int32, sharding=split),
        "position": jax.ShapeDtypeStruct((count,), np.uint32, sharding=split),
    }
    with conv.use(conv.NATIVE):  # the accelerators' form
        return jax.jit(program.step, donate_argnums=0).lower(state, batch).compile()


def collectives(program: str) -> dict[str, list[dict[str, int]]]:
    """{kind: [{dtype: bytes of its result} for each collective]} in a compiled program's text."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    width = {"f32": 4, "bf16": 2, "f64": 8, "s32": 4, "u32": 4, "pred": 1}
    found: dict[str, list[dict[str, int]]] = {}
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", program):
        sizes: dict[str, int] = {}
        for dtype, dims in re.findall(rf"({'|'.join(width)})\[([\d,]*)\]", shapes):
            n_bytes = width[dtype] * math.prod(int(n) for n in dims.split(",") if n)
            sizes[dtype] = sizes.get(dtype, 0) + n_bytes
        found.setdefault(kind, []).append(sizes)
    return found


if __name__ == "__main__":
    cli.run(main)
