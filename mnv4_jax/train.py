"""The host loop: what happens, in order, once per step.

What a run starts from, in order of precedence:
  1. the newest intact checkpoint in WORKDIR/checkpoints,
  2. the weights of `model.init_from`,
  3. fresh weights from `seed`.
"""

import collections
import contextlib
import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from input_pipeline import batches as batches_lib
from input_pipeline import sources
from input_pipeline.cli import UserError
from mnv4_jax import calibration, checkpoint, flops, scoring, sharding, step, writers
from mnv4_jax.bad_images import BadImages
from mnv4_jax.config import fields
from mnv4_jax.digests import Digests
from mnv4_jax.metrics import binary_metrics
from mnv4_jax.models.transfer import transfer
from mnv4_jax.preemption import EXIT_STATUS, Preemption

_IN_FLIGHT = 2  # steps dispatched beyond the one whose metrics are read


def run(config: ConfigDict, workdir: str) -> int:
    """Trains until the last step, or until told to stop.

    Args:
      config: checked, see `config.parse_flags`.
      workdir: where all results go; a run found there is gone on with.

    Returns:
      0, or preemption.EXIT_STATUS when stopped by SIGTERM or a maintenance notice, all saved.

    Raises:
      UserError: whatever the user can put right.
    """
    workdir = epath.Path(workdir).expanduser().absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh()
    is_main = jax.process_index() == 0
    say = functools.partial(print, flush=True) if is_main else logging.info
    _check_batch_size(config, mesh)

    # The data: how much there is decides how long the run is.
    source = sources.open_source(config.data.dir, "Train")
    validation = _open_if_there(config.data.dir, "Validation")
    steps_per_epoch = len(source) / config.train.batch_size
    total_steps = config.train.steps or max(1, round(config.train.epochs * steps_per_epoch))
    eval_every = config.train.eval_every_steps or max(1, math.ceil(steps_per_epoch))

    # The state: restored, converted or fresh.
    schedule = step.learning_rate(config, total_steps, steps_per_epoch)
    optimizer = step.make_optimizer(config, schedule)
    checkpointer = checkpoint.Checkpointer(workdir, keep=config.checkpoint.keep)
    try:
        graphdef, like = step.abstract(config)
    except ValueError as error:  # no such model, or a Gabor bank that cannot be
        raise UserError(f"config.{error}") from None
    state, start = _start(config, like, optimizer, checkpointer, mesh, say)
    train_step = jax.jit(
        functools.partial(
            step.train_step,
            model=(graphdef, like),
            optimizer=optimizer,
            config=config,
            mesh=mesh,
        ),
        donate_argnums=0,
        out_shardings=(sharding.replicated(mesh), None),
    )
    unpacked = jax.jit(
        functools.partial(step.unpacked, like=like), out_shardings=sharding.replicated(mesh)
    )
    bad_images = BadImages(workdir, len(source))
    evaluate = functools.partial(_evaluate, config, mesh, bad_images.name)

    if is_main:
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2))
        say(
            f"{len(source)} pictures, {total_steps} steps of {config.train.batch_size}"
            f" ({total_steps / steps_per_epoch:.3g} epochs) on {mesh.size} {jax.default_backend()}"
            f" device{'s' * (mesh.size > 1)}; results in {workdir}"
        )
    writer = writers.MetricsWriter(workdir, start_step=start) if is_main else None
    progress = writers.Progress(total_steps, start, show=is_main)
    digests = Digests(workdir, config.seed, source.ids, start) if config.data.log_digests else None
    # All of them at once: asking the device at a log line would wait for the steps in flight.
    learning_rates = np.asarray(jax.jit(schedule)(np.arange(total_steps)))
    log = _TrainLog(writer, progress, config, learning_rates, mesh.size)
    batches = batches_lib.train_batches(
        source,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad=bad_images.note,
    )
    with contextlib.ExitStack() as at_the_end:
        at_the_end.enter_context(checkpointer.says_a_full_disk())
        for thing in (checkpointer, writer, progress, batches):  # the last first
            if thing:
                at_the_end.callback(thing.close)
        with Preemption() as preemption:
            for done in range(start + 1, total_steps + 1):
                if done % config.checkpoint.every_steps == 0:
                    checkpointer.wait()  # so a kill costs less than twice `every_steps`
                batch = next(batches)
                if digests:
                    digests.write(done, batch)
                arrays = {name: batch[name] for name in ("image", "label", "position")}
                state, metrics = train_step(state, sharding.put_batch(arrays, mesh))
                log.add(done, metrics, batch["label"])
                bad_images.check()

                last = done == total_steps
                stop = preemption.stop_requested(done) and not last
                due = validation and (last or (done % eval_every == 0 and not stop))
                if due or last or stop or done % config.checkpoint.every_steps == 0:
                    log.flush()  # a non-finite state is found here, before it is saved
                    named, results, fitted = unpacked(state), None, None
                    if due:
                        results, fitted = evaluate(step.merge(graphdef, named.ema), validation)
                        if writer:
                            writer.write(done, "validation", results)
                            progress.log(done, "validation", results)
                        log.restart_clock()
                    # What tells of these steps is there before they are.
                    for lines in (writer, digests):
                        if lines:
                            lines.flush()
                    meta = checkpoint.make_meta(config, calibration=fitted, metrics=results)
                    checkpointer.save(done, named, meta, results)
                if stop:
                    checkpointer.wait()
                    say(f"stopped at step {done}, all saved: run the same command to go on")
                    return EXIT_STATUS
        log.flush()
        checkpointer.wait()
        progress.close()
        _finish(config, workdir, evaluate, writer, total_steps, say)
    return 0


def _check_batch_size(config: ConfigDict, mesh) -> None:
    if config.train.batch_size % mesh.size:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size} does not divide by the"
            f" {mesh.size} devices: {math.ceil(config.train.batch_size / mesh.size) * mesh.size}"
            " would"
        )


def _open_if_there(data_dir: str, split: str) -> sources.Source | None:
    return sources.open_source(data_dir, split) if sources.has_split(data_dir, split) else None


def _start(config, like, optimizer, checkpointer, mesh, say) -> tuple[step.TrainState, int]:
    """The state to start from and its step; see this module's docstring."""
    init = functools.partial(step.init_state, optimizer=optimizer)
    everywhere = sharding.replicated(mesh)
    if found := checkpointer.latest_meta():
        _check_same_model(config, found[1]["config"], checkpointer.folder)
        _warn_of_other_batches(config, found[1]["config"], say)
        saved = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(lambda weights: step.unpacked(init(weights), like), like),
        )
        state, _ = checkpointer.restore(saved)
        start = int(state.step)
        say(f"going on from step {start}, found in {checkpointer.folder}")
        return jax.jit(step.packed, out_shardings=everywhere)(state), start
    weights = step.fresh_weights(config)
    if config.model.init_from:
        weights = _transferred(config.model.init_from, weights, say)
    state = jax.jit(init, out_shardings=everywhere)(weights)
    return state, 0


def _transferred(path: str, weights: dict[str, Any], say) -> dict[str, Any]:
    """`weights` with everything replaced that the checkpoint at `path` has."""
    try:
        source = checkpoint.load(path)
        params, stats, notes = transfer(
            weights["params"],
            weights["stats"],
            source.weights["params"],
            source.weights["stats"],
        )
    except UserError as error:
        raise UserError(f"config.model.init_from: {error}") from None
    say("\n".join([f"starting from the weights of {source.path}", *notes]))
    return {"params": params, "stats": stats}


def _check_same_model(config: ConfigDict, saved: Mapping[str, Any], folder: epath.Path) -> None:
    for field, (mine, theirs) in _changed(config, saved).items():
        if field == "model.name" or field.startswith("gabor."):
            raise UserError(
                f"config.{field}={mine!r}, but the run in {folder} has {theirs!r}:"
                " use that, or another --workdir"
            )


def _warn_of_other_batches(config: ConfigDict, saved: Mapping[str, Any], say) -> None:
    # These bring the same pictures from elsewhere, or in another way.
    same = {"data.dir", "data.threads", "data.workers", "data.log_digests"}
    changed = [
        f"config.{field}={mine!r} (was {theirs!r})"
        for field, (mine, theirs) in _changed(config, saved).items()
        if field in ("seed", "train.batch_size")
        or (field.startswith("data.") and field not in same)
    ]
    if changed:
        say(f"warning: {', '.join(changed)}: from here on the batches are those of another run")


def _changed(config: ConfigDict, saved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{"data.crop": (now, as saved), ...}: the fields of `config` with another value there."""
    now, then = fields(config), fields(checkpoint.as_config(saved))
    return {f: (v, then.get(f)) for f, v in now.items() if v != then.get(f)}


def _evaluate(config, mesh, on_bad, model, source):
    """(metrics, calibration or None) of `model` on every picture of `source`."""
    scores = scoring.score_source(model, source, config.data, mesh, on_bad=on_bad)
    results = {"n": len(scores.labels), **binary_metrics(scores.labels, scores.logits)}
    return results, calibration.fit(scores.logits, scores.labels)


def _finish(config, workdir, evaluate, writer, total_steps, say) -> None:
    """Test with the weights `evaluate` would take, the curves, the table, what to try next."""
    best = checkpoint.load(workdir)
    test = _open_if_there(config.data.dir, "Test")
    results = {}
    if test:
        results["test"], _ = evaluate(best.model, test)
    if not writer:
        return
    if best.meta["metrics"]:
        results = {"validation": best.meta["metrics"], **results}
    if test:
        writer.write(best.step, "test", results["test"])
    writer.flush()
    writers.draw_curves(workdir)
    say(f"\nbest checkpoint by validation AUC: step {best.step} of {total_steps}")
    writers.print_summary(
        results,
        [
            f"python -m mnv4_jax.evaluate --checkpoint={workdir}"
            f" --data={config.data.dir} --out={workdir / 'report'}",
            f"python -m mnv4_jax.predict --checkpoint={workdir} PHOTO.jpg",
            f"python -m mnv4_jax.convert --checkpoint={workdir} --to=torch --out=model.safetensors",
        ],
    )
    say(f"curves: {workdir / 'curves.png'}, and for TensorBoard in {workdir / 'tensorboard'}")


class _TrainLog:
    """Reads the metrics of steps some way behind the newest, so that the device never waits.

    Loss is the mean over the global batch; accuracy and AUC are over the rows that this process
    holds, of all steps since the last line.
    """

    def __init__(self, writer, progress, config, learning_rates, n_devices):
        self._writer, self._progress = writer, progress
        self._config, self._learning_rates, self._n_devices = config, learning_rates, n_devices
        self._pending = collections.deque()
        self._losses, self._logits, self._labels = [], [], []
        self.restart_clock()

    @functools.cached_property
    def _flops_per_image(self) -> float:
        # A second of tracing: not before the first step, and not for a device of unknown peak.
        known = math.isfinite(flops.peak(jax.devices()[0]))
        return flops.per_image(self._config) if known else math.nan

    def restart_clock(self) -> None:
        """Leaves what came before (evaluation) out of the next images/s."""
        self._clock, self._timed_steps = time.perf_counter(), 0

    def add(self, done: int, metrics: dict[str, jax.Array], labels: np.ndarray) -> None:
        self._pending.append((done, metrics, labels))
        while len(self._pending) > _IN_FLIGHT:
            self._read()

    def flush(self) -> None:
        while self._pending:
            self._read()

    def _read(self) -> None:
        done, metrics, labels = self._pending.popleft()
        shards = sorted(
            metrics.pop("logits").addressable_shards, key=lambda s: s.index[0].start or 0
        )
        self._logits.extend(np.asarray(s.data) for s in shards)
        self._labels.append(labels)
        metrics = jax.device_get(metrics)
        self._losses.append(float(metrics["loss"]))
        self._timed_steps += 1
        self._progress.step(done)
        if metrics["bad_in_a_row"] >= self._config.train.max_bad_steps:
            raise UserError(
                f"the loss was not finite in {metrics['bad_in_a_row']} steps in a row, up to step"
                f" {done}: lower config.train.learning_rate; the last checkpoint is intact"
            )
        if done % self._config.train.log_every_steps == 0:
            self._write(done, metrics)

    def _write(self, done: int, metrics: dict[str, Any]) -> None:
        seconds = time.perf_counter() - self._clock
        images_per_s = self._timed_steps * self._config.train.batch_size / seconds
        window = binary_metrics(np.concatenate(self._labels), np.concatenate(self._logits))
        values = {
            "loss": float(np.mean(self._losses)),
            "accuracy": window["accuracy"],
            "auc": window["auc"],
            "images_per_s": images_per_s,
            "images_per_s_per_device": images_per_s / self._n_devices,
            "model_flops_utilisation": flops.utilisation(
                self._flops_per_image * images_per_s / self._n_devices, jax.devices()[0]
            ),
            "learning_rate": float(self._learning_rates[done - 1]),
            "grad_norm": float(metrics["grad_norm"]),
            "bad_steps": int(metrics["bad_steps"]),
        }
        if self._writer:
            self._writer.write(done, "train", values)
        self._progress.log(done, "train", values)
        self._losses, self._logits, self._labels = [], [], []
        self.restart_clock()
