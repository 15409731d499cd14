"""The host loop: what happens at each step, in order."""

import contextlib
import functools
import json
import math
import os

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.cli import UserError
from input_pipeline.mixtures import Mixture
from mnv4_jax.config import eval_transform
from mnv4_jax.detector import saved as saved_lib
from mnv4_jax.detector import scoring
from mnv4_jax.measure import calibration
from mnv4_jax.measure.metrics import binary_metrics, metrics_by_set
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.models.folded import folded
from mnv4_jax.runtime import workdir_lock
from mnv4_jax.runtime.mesh import make_mesh, replicated
from mnv4_jax.runtime.preemption import EXIT_STATUS, Preemption
from mnv4_jax.training import checkpoint, objectives, writers
from mnv4_jax.training import optimizer as optimizer_lib
from mnv4_jax.training.bad_images import BadImages
from mnv4_jax.training.digests import Digests
from mnv4_jax.training.pictures import TrainPictures
from mnv4_jax.training.start import first_state
from mnv4_jax.training.step import Program
from mnv4_jax.training.train_log import TrainLog


def run(config: ConfigDict, workdir: str) -> int:
    """Trains until the last step, or until told to stop.

    Args:
      config: checked, see `config.parse_flags`.
      workdir: where all results go; resumes a run found there.

    Returns:
      0, or preemption.EXIT_STATUS if SIGTERM or a maintenance notice stopped it; then all is saved.

    Raises:
      UserError: any error that the user can fix.
    """
    workdir = epath.Path(workdir).expanduser().absolute()
    try:
        os.fspath(workdir).encode()
    except UnicodeEncodeError:
        raise UserError(f"--workdir={workdir}: is not UTF-8, which checkpoints need") from None
    workdir.mkdir(parents=True, exist_ok=True)
    # Process 0 holds the workdir for all processes of this run.
    alone = workdir_lock.hold(workdir) if jax.process_index() == 0 else contextlib.nullcontext()
    with alone:
        return _Run(config, workdir).to_the_end()


class _Run:
    """One start of a run: its objects and its phases."""

    def __init__(self, config: ConfigDict, workdir: epath.Path):
        self.config, self.workdir = config, workdir
        self.is_main = jax.process_index() == 0
        self.say = functools.partial(print, flush=True) if self.is_main else logging.info
        self.mesh = make_mesh()
        self._check_batch_size()

        # The data: its size determines the length of the run.
        self.source = sources.open_source(config.data.dir, "Train")
        self.validation = self._open_if_there("Validation")
        self.steps_per_epoch = len(self.source) / config.train.batch_size
        epochs = config.train.epochs * self.steps_per_epoch
        self.total_steps = config.train.steps or max(1, round(epochs))
        self.eval_every = config.train.eval_every_steps or max(1, math.ceil(self.steps_per_epoch))

        # The program and its state: restored, converted or fresh.
        schedule = optimizer_lib.learning_rate(config, self.total_steps, self.steps_per_epoch)
        self.checkpointer = checkpoint.Checkpointer(workdir, keep=config.checkpoint.keep)
        try:
            objective = objectives.from_config(config, self.steps_per_epoch)
            program = Program(config, self.mesh, schedule, objective)
        except ValueError as error:  # no such model, or a Gabor bank that cannot be
            raise UserError(f"config.{error}") from None
        self.graphdef = program.graphdef
        self.state, self.done, self.overdue = first_state(program, self.checkpointer, self.say)
        self.step = jax.jit(
            program.step, donate_argnums=0, out_shardings=(program.shardings(), None)
        )
        shardings = jax.tree.map(lambda x: x.sharding, program.by_name())
        self.by_name = jax.jit(program.packing.unpack_state, out_shardings=shardings)
        self.gather = jax.jit(lambda weights: weights, out_shardings=replicated(self.mesh))
        self._announce()

        # The outputs.
        self.bad_images = BadImages(workdir, len(self.source))
        self.writer = writers.MetricsWriter(
            workdir, start_step=self.done, evaluation_due=self.overdue
        )
        self.progress = writers.Progress(self.total_steps, self.done, show=self.is_main)
        self.digests = Digests(
            workdir, config.seed, self.source.ids, self.done, on=config.data.log_digests
        )
        # All at once: asking the device for one at a log line would wait for the steps in flight.
        learning_rates = np.asarray(jax.jit(schedule)(np.arange(self.total_steps)))
        self.log = TrainLog(self.writer, self.progress, config, learning_rates, self.mesh.size)
        self.pictures = TrainPictures(
            config,
            self.source,
            self.mesh,
            start=self.done,
            on_bad=self.bad_images.note,
            say=self.say,
        )

    def to_the_end(self) -> int:
        """Runs all phases. Returns the exit status, see `run`."""
        with contextlib.ExitStack() as at_the_end:
            at_the_end.enter_context(self.checkpointer.explain_disk_full())
            for thing in (self.checkpointer, self.writer, self.progress, self.pictures):
                at_the_end.callback(thing.close)  # the last first
            with Preemption() as preemption:
                self.stop_requested = preemption.stop_requested
                try:
                    if self.overdue and self.validation:
                        self._make_up_for_evaluation()
                    self._train()
                    self._finish()
                except scoring.Stopped:
                    self.say(
                        f"stopped at step {self.done}, all saved: run the same command to go on"
                    )
                    return EXIT_STATUS
        return 0

    def _make_up_for_evaluation(self) -> None:
        metrics, fitted = self._validate(self.by_name(self.state).ema)
        new = {"calibration": fitted, "metrics": metrics, "evaluation_due": False}
        self.checkpointer.add_results(self.done, new, metrics)

    def _train(self) -> None:
        """If told to stop before the end, saves all and raises scoring.Stopped."""
        every = self.config.checkpoint.every_steps
        while self.done < self.total_steps:
            self.done += 1
            if self.done % every == 0:
                self.checkpointer.wait()  # so a kill costs less than twice `every_steps`
            self._step(*next(self.pictures))
            last = self.done == self.total_steps
            stop = self.stop_requested() and not last
            due = bool(self.validation) and (last or self.done % self.eval_every == 0)
            if due or last or stop or self.done % every == 0:
                self._save(due=due, stop=stop)
        self.checkpointer.wait()
        self.progress.close()

    def _step(self, batch: dict[str, np.ndarray], arrays: dict[str, jax.Array]) -> None:
        self.digests.write(self.done, batch)
        # All inputs of the step are on the device already; only log lines fetch from it.
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.step(self.state, arrays)
        self.log.add(self.done, metrics, batch["label"])
        self._check_losses()
        self.bad_images.check()

    def _check_losses(self) -> None:
        if self.log.bad_in_a_row >= self.config.train.max_bad_steps:
            raise UserError(
                f"the loss was not finite in {self.log.bad_in_a_row} steps in a row, up to step"
                f" {self.log.step}: lower config.train.learning_rate; the last checkpoint is intact"
            )

    def _save(self, *, due: bool, stop: bool) -> None:
        """Saves the state. Evaluates first if that is `due`, unless told to `stop`. On a stop,
        raises scoring.Stopped once all is on disk."""
        self.log.flush()
        self._check_losses()  # a non-finite state is found before it is saved
        named, metrics, fitted = self.by_name(self.state), None, None
        if due and not stop:
            try:
                metrics, fitted = self._validate(named.ema)
            except scoring.Stopped:
                stop = True
            self.log.restart_clock()
        # Flush the logs before saving the checkpoint that covers them.
        self.writer.flush()
        self.digests.flush()
        meta = saved_lib.make_meta(
            self.config,
            calibration=fitted,
            metrics=metrics,
            evaluation_due=due and metrics is None,
        )
        self.checkpointer.save(self.done, named, meta, metrics)
        if stop:
            self.checkpointer.wait()
            raise scoring.Stopped

    def _validate(self, ema) -> tuple[dict, dict | None]:
        """Logs and returns (metrics, calibration or None) of the averaged weights. Raises
        scoring.Stopped if told to stop: the next start evaluates again."""
        model = weights_lib.merge(self.graphdef, self.gather(ema))
        metrics, fitted = self._evaluate(model, self.validation)
        self.writer.write(self.done, "validation", metrics)
        self.progress.log(self.done, "validation", metrics)
        return metrics, fitted

    def _evaluate(self, model, source) -> tuple[dict, dict | None]:
        """(metrics, calibration or None) of `model` on every picture of `source`."""
        data = self.config.data
        scores = scoring.score_source(
            folded(model),
            source,
            eval_transform(data),
            self.mesh,
            threads=data.threads,
            workers=data.workers,
            on_bad=self.bad_images.name,
            stop=self.stop_requested,
        )
        sets = None
        if isinstance(source, Mixture):
            sets = source.set_of[scores.index]
            measured = metrics_by_set(scores.labels, scores.logits, sets, source.names)
        else:
            measured = binary_metrics(scores.labels, scores.logits)
        metrics = {"n": len(scores.labels), **measured}
        return metrics, calibration.fit(scores.logits, scores.labels, set_of=sets)

    def _finish(self) -> None:
        """Tests the weights `evaluate` would load; writes curves, the table and next commands."""
        best = saved_lib.load(self.workdir)
        test = self._open_if_there("Test")
        results = {"validation": best.meta["metrics"]} if best.meta["metrics"] else {}
        if test:
            results["test"], _ = self._evaluate(best.model, test)
            self.writer.write(best.step, "test", results["test"])
        self.writer.flush()
        if not self.is_main:
            return
        workdir = self.workdir
        writers.draw_curves(workdir)
        self.say(f"\nbest checkpoint by validation AUC: step {best.step} of {self.total_steps}")
        writers.print_summary(
            results,
            [
                f"python -m mnv4_jax.evaluate --checkpoint={workdir}"
                f" --data={self.config.data.dir} --out={workdir / 'report'}",
                f"python -m mnv4_jax.predict --checkpoint={workdir} PHOTO.jpg",
                f"python -m mnv4_jax.convert --checkpoint={workdir} --to=torch"
                " --out=model.safetensors",
            ],
        )
        self.say(
            f"curves: {workdir / 'curves.png'}, and for TensorBoard in {workdir / 'tensorboard'}"
        )

    def _open_if_there(self, split: str) -> sources.Source | None:
        folder = self.config.data.dir
        return sources.open_source(folder, split) if sources.has_split(folder, split) else None

    def _check_batch_size(self) -> None:
        batch_size, devices = self.config.train.batch_size, self.mesh.size
        if batch_size % devices:
            raise UserError(
                f"config.train.batch_size={batch_size} does not divide by the {devices} devices:"
                f" {math.ceil(batch_size / devices) * devices} would"
            )

    def _announce(self) -> None:
        """Prints what was found, and writes it with the config to WORKDIR/config.json."""
        if not self.is_main:
            return
        if self.validation is None:
            self.say(
                f"{self.config.data.dir}: no Validation folder, so there will be no validation AUC,"
                " no calibration, no thresholds and no best checkpoint"
            )
        found = {"Train": self.source}
        if self.validation:
            found["Validation"] = self.validation
        for split, source in found.items():
            self.say(f"{split}: {sources.describe(source)}")
        values = json.loads(self.config.to_json_best_effort())
        values["found"] = {split: sources.found(source) for split, source in found.items()}
        (self.workdir / "config.json").write_text(json.dumps(values, indent=2))
        devices = self.mesh.size
        self.say(
            f"{len(self.source)} pictures, {self.total_steps} steps of"
            f" {self.config.train.batch_size} ({self.total_steps / self.steps_per_epoch:.3g}"
            f" epochs) on {devices} {jax.default_backend()} device{'s' * (devices > 1)};"
            f" results in {self.workdir}"
        )
