"""All measurements on a GPU, in one command of about nine minutes:

    python benchmarks/gpu.py --out=gpu.jsonl

Four groups run, each in its own process, which is ended when its time is up. They print rows as
they finish, the most important first:
  step    the training step (224 px, resident batch) by form of the convolutions, batch size, dtype
  torch   timm's network under torch.compile, autocast and channels_last, by batch size
  ops     one convolution at a time, forward and with both gradients; BatchNorm
  input   steps fed from JPEGs by the project's own pipeline, against a resident batch
Peers need timm and torch. Our step includes clipping, AdamW and EMA; the peer's step has no EMA,
which favours it. Augmentation is off in both.
"""

import argparse
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the project need not be installed
from steps import config_for, make_step, median_s, random_batch

GROUPS = {"step": 300, "torch": 140, "ops": 50, "input": 90}  # name: seconds at most
SIZE = 224  # px


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--out", default="", help="rows are appended here as JSON lines")
    parser.add_argument("--tiny", action="store_true", help="try the script out, on any backend")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        rows = Rows(args.deadline)
        {"step": steps, "torch": torch_steps, "ops": ops, "input": fed_steps}[args.child](
            rows, args.tiny
        )
        return
    cache = tempfile.mkdtemp(prefix="mnv4_jax_gpu_")
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
    }
    for group in args.groups.split(","):
        print(f"--- {group}", flush=True)
        command = [sys.executable, __file__, f"--child={group}", *(["--tiny"] * args.tiny)]
        seconds = GROUPS[group] * (10 if args.tiny else 1)
        command.append(f"--deadline={time.time() + seconds}")
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        timer = threading.Timer(seconds + 20, child.kill)  # a row that hangs ends its group
        timer.start()
        for line in child.stdout:
            if not line.startswith("{"):
                continue
            row = json.loads(line)
            print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            if args.out:
                with open(args.out, "a") as file:
                    file.write(line)
        child.wait()
        timer.cancel()
        if child.returncode:
            print(f"{group} ended with status {child.returncode}", flush=True)


class Rows:
    """Prints each row of the table as one line of JSON; an error affects only its row."""

    def __init__(self, deadline: float):
        self._deadline = deadline

    def row(self, group, function, **labels):
        """Prints the labels and the dict that function() returns; returns the dict, or None."""
        values, start = None, time.time()
        try:
            if start > self._deadline:
                raise TimeoutError("left out: the group's time is up")
            values = function()
        except Exception as error:
            labels["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        row = {"group": group, **labels, **(values or {}), "row_s": round(time.time() - start, 1)}
        print(json.dumps(row), flush=True)
        return values


# --- the training step


def time_step(config, form=None, repeats=10):
    import jax

    compiled, state, compile_s = make_step(config, form)
    batch = random_batch(config)
    box = [state]

    def run():
        box[0], metrics = compiled(box[0], batch)
        return metrics

    seconds = median_s(run, jax.block_until_ready, repeats=repeats)
    memory = compiled.memory_analysis()
    flops = (compiled.cost_analysis() or {}).get("flops", 0)
    return {
        "images_per_s": round(config.train.batch_size / seconds),
        "ms": round(1e3 * seconds, 2),
        "tflops": round(flops / seconds / 1e12, 1),
        "temp_mib": memory.temp_size_in_bytes >> 20,
        "compile_s": round(compile_s, 1),
        "loss": round(float(run()["loss"]), 4),
    }


def steps(rows, tiny):
    import jax

    from mnv4_jax.ops.conv import Form

    forms = {
        "native": Form(),
        "pointwise dot": Form(pointwise="dot"),
        "depthwise shifted": Form(depthwise="shifted"),
    }
    size, first, others = (32, 4, (2,)) if tiny else (SIZE, 512, (1024, 256, 2048, 64, 4096))
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)
    found = {}
    for name, form in forms.items():
        values = rows.row(
            "step",
            lambda form=form: time_step(config_for(first, size), form),
            form=name,
            dtype="bfloat16",
            batch=first,
        )
        found[name] = values["images_per_s"] if values else 0
    best = max(found, key=found.get)
    labels = {"form": best, "dtype": "bfloat16"}
    for batch in others:
        rows.row(
            "step",
            lambda batch=batch: time_step(config_for(batch, size), forms[best]),
            **labels,
            batch=batch,
        )
    rows.row(
        "step",
        lambda: time_step(config_for(first, size, "float32"), forms[best]),
        **labels | {"dtype": "float32"},
        batch=first,
    )


def torch_steps(rows, tiny):
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, batches = (32, (4,)) if tiny else (SIZE, (1024, 512, 256))
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")

    def time_torch(batch, compiled):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = timm.create_model("mobilenetv4_conv_small", num_classes=2).to(device).train()
        model = model.to(memory_format=torch.channels_last)
        forward = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
        images = torch.rand(batch, 3, size, size, device=device)
        images = images.to(memory_format=torch.channels_last)
        labels = torch.randint(0, 2, (batch,), device=device)

        def run():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss

        start = time.perf_counter()
        finish = lambda loss: loss.item()  # noqa: E731
        finish(run())
        compile_s = time.perf_counter() - start
        seconds = median_s(run, finish, repeats=10)
        return {
            "images_per_s": round(batch / seconds),
            "ms": round(1e3 * seconds, 2),
            "compile_s": round(compile_s, 1),
        }

    print(json.dumps({"torch": torch.__version__, "timm": timm.__version__}), flush=True)
    for batch in batches:
        rows.row("torch", lambda batch=batch: time_torch(batch, True), compiled=True, batch=batch)
    for batch in batches[:1]:
        rows.row("torch", lambda batch=batch: time_torch(batch, False), compiled=False, batch=batch)


# --- one operation at a time

SHAPES = (  # name, input side, Cin, Cout, kernel, stride: at 224 px, and the work there
    ("stem", 224, 3, 32, 3, 2),
    ("dense", 112, 32, 32, 3, 2),
    ("depthwise", 28, 64, 64, 5, 1),
    ("depthwise", 28, 192, 192, 5, 2),
    ("depthwise", 14, 192, 192, 3, 1),
    ("depthwise", 14, 576, 576, 3, 2),
    ("depthwise", 7, 512, 512, 5, 1),
    ("pointwise", 28, 64, 192, 1, 1),
    ("pointwise", 14, 192, 96, 1, 1),
)


def ops(rows, tiny):
    import jax
    import jax.numpy as jnp

    from mnv4_jax.ops import conv

    batch, repeats = (2, 1) if tiny else (512, 20)
    forms = {"depthwise": "shifted", "pointwise": "dot"}
    for kind, side, channels, features, k, stride in SHAPES:
        groups = channels if kind == "depthwise" else 1
        key = jax.random.key(0)
        x = jax.random.normal(key, (batch, side, side, channels), jnp.bfloat16)
        kernel = jax.random.normal(key, (k, k, channels // groups, features), jnp.bfloat16)
        candidates = [conv.Form()]
        if kind in forms:
            candidates.append(conv.Form(**{kind: forms[kind]}))
        for form in candidates:
            apply = functools.partial(conv.conv2d, stride=stride, groups=groups)

            def time_forms(form=form, apply=apply, x=x, kernel=kernel):
                dy = jnp.ones_like(apply(x, kernel))
                parts = {
                    "forward": lambda x, w, dy: apply(x, w),
                    "dx": lambda x, w, dy: jax.vjp(lambda x: apply(x, w), x)[1](dy),
                    "dw": lambda x, w, dy: jax.vjp(lambda w: apply(x, w), w)[1](dy),
                }
                with conv.use(form):
                    compiled = {
                        n: jax.jit(f).lower(x, kernel, dy).compile() for n, f in parts.items()
                    }
                return {
                    f"{name}_ms": round(
                        1e3 * median_s(lambda f=f: f(x, kernel, dy), jax.block_until_ready,
                                       repeats=repeats), 3,
                    )
                    for name, f in compiled.items()
                } | {"mib_in_out": (x.nbytes + dy.nbytes) >> 20}  # fmt: skip

            rows.row(
                "ops",
                time_forms,
                op=f"{kind} {side} px {channels}>{features} k{k} s{stride}",
                form=getattr(form, kind, "native"),
            )
    rows.row("ops", lambda: time_norm(batch, repeats), op="BatchNorm + ReLU 28 px 192")


def time_norm(batch, repeats):
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from mnv4_jax.models.layers import BatchNorm

    x = jax.random.normal(jax.random.key(0), (batch, 28, 28, 192), jnp.bfloat16)
    graphdef, weights = nnx.split(BatchNorm(192))
    weights = jax.tree.map(jnp.asarray, weights)

    def apply(x):
        return nnx.relu(nnx.merge(graphdef, weights, copy=True)(x, train=True))

    forward = jax.jit(apply)
    both = jax.jit(lambda x, dy: jax.vjp(apply, x)[1](dy))
    finish = jax.block_until_ready
    return {
        "forward_ms": round(1e3 * median_s(lambda: forward(x), finish, repeats=repeats), 3),
        "forward_dx_ms": round(1e3 * median_s(lambda: both(x, x), finish, repeats=repeats), 3),
        "mib_in_out": 2 * x.nbytes >> 20,
    }


# --- fed from JPEGs


def fed_steps(rows, tiny):
    import jax
    from absl import flags

    from input_pipeline import batches, sources
    from mnv4_jax.config import train_transform
    from mnv4_jax.runtime.mesh import make_mesh, put_batch

    size, batch, n_files = (32, 4, 16) if tiny else (SIZE, 512, 4096)
    config = config_for(batch, size)
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for one
    config.data.dir = draw_jpegs(n_files, size + 32)
    source = sources.open_source(config.data.dir, "Train")
    transform = train_transform(config.data)
    mesh = make_mesh(jax.devices()[:1])
    compiled, state, _ = make_step(config)
    box = [state]
    resident = random_batch(config)

    def finish(loss):
        return float(loss)

    def one(batch):
        box[0], metrics = compiled(box[0], batch)
        return metrics["loss"]

    # Threads queue for the GIL, processes copy: 0 threads is one a core.
    for threads, workers in ((0, 0), (0, 12), (8, 0), (4, 0), (0, 4), (2, 12)):

        def run(threads=threads, workers=workers):
            alone = median_s(lambda: one(resident), finish, repeats=10)
            n = 2 if tiny else 24
            with batches.train_batches(
                source, transform, batch_size=batch, seed=0, threads=threads, workers=workers
            ) as feed:
                for _ in range(4):  # threads and buffers fill
                    next(feed)
                start = time.perf_counter()
                for _ in range(n):
                    next(feed)
                pipeline = (time.perf_counter() - start) / n
                names = ("image", "label", "position")
                previous, start = None, time.perf_counter()
                for host in itertools.islice(feed, n):
                    loss = one(put_batch({k: host[k] for k in names}, mesh))
                    if previous is not None:
                        finish(previous)
                    previous = loss
                finish(previous)
                fed = (time.perf_counter() - start) / n
            return {
                "resident_images_per_s": round(batch / alone),
                "pipeline_images_per_s": round(batch / pipeline),
                "fed_images_per_s": round(batch / fed),
                "stall": f"{max(0, 1 - alone / fed):.1%}",
            }

        rows.row("input", run, workers=workers, threads=threads, batch=batch)


def draw_jpegs(n: int, side: int) -> str:
    """A folder in the Kaggle layout of n smooth random pictures, about 12 kB each at 256 px."""
    import cv2

    rng = np.random.default_rng(0)
    root = pathlib.Path(tempfile.mkdtemp(prefix="mnv4_jax_jpegs_"), "Train")
    for name in ("Fake", "Real"):
        (root / name).mkdir(parents=True)
    for i in range(n):
        small = rng.integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / ("Fake", "Real")[i % 2] / f"{i}.jpg"), image)
    return str(root.parent)


if __name__ == "__main__":
    main()
