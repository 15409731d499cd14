"""A job: Ray Data decodes and scores the rest of a plan; the driver writes it shard by shard.

Each row is written exactly once. Answers carry their place in the input. The driver keeps the first
answer to each row, and writes a shard when all its rows have one. It asks again, row by row, for
answers that never came.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from input_pipeline import engine
from input_pipeline.cli import UserError
from mnv4_jax.fleet import decoding, inputs, plan, shards
from mnv4_jax.fleet.store import Store

FILE = "job.json"
# Retries of a decode task whose process was lost. Ray Data itself would retry for ever, even with a
# picture that kills the process each time.
_RETRIES = 3
_GAVE_UP = "each task that tried to read it failed or was killed"
# Share of tasks that may fail after all retries before the whole job is given up.
_LOST_CHUNKS = 0.02
_SINGLE_ROWS = 10_000  # most rows to ask for one by one


@dataclasses.dataclass(frozen=True)
class Options:
    """`keep_crops`: see `views.face_views`; `scorers`: number of actors, 0: as many as fit."""

    source: str
    out: str
    checkpoint: str | None
    raw: bool = False
    column: str | None = None
    limit: int | None = None
    shard_rows: int = 10_000
    faces: bool = False
    keep_crops: bool = False
    threshold: Callable[[dict[str, float]], float] = lambda thresholds: 0.5
    scorers: int = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """A plan, a detector, and the shards that are done already."""

    store: Store
    given: inputs.Input
    plan: plan.Plan
    card: Any  # scorer.Card
    threshold: float
    options: Options
    done: set[int]

    @property
    def id(self) -> str:
        return f"{self.plan.digest}/{self.card.digest}"

    def rows_left(self) -> int:
        return int(self.plan.rows.sum()) - sum(int(self.plan.rows[i]) for i in self.done)


@dataclasses.dataclass(frozen=True)
class Listed:
    """An input, listed into the job's folder."""

    store: Store
    given: inputs.Input
    plan: plan.Plan


def list_input(options: Options) -> Listed:
    """Lists the input, without Ray. Raises UserError if it is missing or has no picture."""
    given = inputs.open_input(options.source, options.column)
    store = Store(options.out)
    store.make()
    planned = plan.write(given, store, shard_rows=options.shard_rows, limit=options.limit)
    if not len(planned.rows):
        raise UserError(f"--input={options.source}: an empty list: no picture in it")
    return Listed(store, given, planned)


def open_job(ray: ModuleType, options: Options, listed: Listed) -> Job:
    """Reads the checkpoint and the existing contents of `options.out`.

    Raises:
      UserError: no checkpoint, or the folder holds the output of another job.
    """
    store, given, planned = listed.store, listed.given, listed.plan
    card = _describe(ray, options)
    threshold = options.threshold(card.thresholds)
    facts = {
        "input": planned.digest,
        "pictures": int(planned.rows.sum()),
        "shard_rows": options.shard_rows,
        "checkpoint": card.digest,
        "faces": options.faces,
        "keep_crops": options.keep_crops,
        "threshold": threshold,
    }
    if store.exists(FILE):
        _check_same(json.loads(store.read(FILE)), facts, options)
    elif store.names(shards.FOLDER):
        raise UserError(
            f"--out={options.out} holds {shards.FOLDER}/ and no {FILE}: name another folder"
        )
    plan.adopt(store)
    store.write(FILE, json.dumps(facts, indent=1).encode())
    job = Job(store, given, planned, card, threshold, options, set())
    job.done.update(shards.finished(store, planned.rows, job.id))
    return job


def _describe(ray: ModuleType, options: Options):
    # scorer.py imports JAX, which the driver does not need. max_calls=1: end that process, which
    # may not use the accelerator, after the call.
    def describe(checkpoint, raw):
        from mnv4_jax.fleet import scorer

        return scorer.describe(checkpoint, raw)

    checkpoint = options.checkpoint
    if checkpoint and "://" not in checkpoint:
        checkpoint = os.path.abspath(os.path.expanduser(checkpoint))
    task = ray.remote(num_cpus=1, max_calls=1)(describe)
    try:
        return ray.get(task.remote(checkpoint, options.raw))
    except ray.exceptions.RayError as error:
        raise engine.user_error(error) or error from None


def _check_same(there: dict, facts: dict, options: Options) -> None:
    same_as = {
        "input": f"another --input or --limit than {options.source} as it is now",
        "pictures": "another input",
        "checkpoint": "another --checkpoint",
        "threshold": f"--threshold={there.get('threshold')}",
        "faces": f"faces={there.get('faces')}",
        "shard_rows": f"--shard_rows={there.get('shard_rows')}",
    }
    for field, value in facts.items():
        if there.get(field) != value:
            what = same_as.get(field, f"{field}={there.get(field)}")
            raise UserError(
                f"--out={options.out} holds the output of {what}: name another folder, or delete"
                " this one"
            )


def run(ray: ModuleType, job: Job, on_answers: Callable[[int], None]) -> None:
    """Scores the remaining shards and writes them.

    Args:
      on_answers: called with the number of newly answered rows.

    Raises:
      UserError: the disk is full, or a worker raised it.
    """
    left = [i for i in range(len(job.plan.rows)) if i not in job.done]
    open_shards = {i: shards.Shard(int(job.plan.rows[i])) for i in left}
    chunks = job.plan.chunks[np.isin(job.plan.chunks[:, 0], left)]
    _round(ray, job, plan.tasks(chunks), open_shards, on_answers, single=False)
    missing = _missing(open_shards)
    if missing:
        if len(missing) > _SINGLE_ROWS:
            raise UserError(
                f"{len(missing):,} pictures were lost with the processes that read them, too many"
                " to ask for one by one: run the same command again"
            )
        singles = np.array([(shard, row, row + 1) for shard, row in missing])
        _round(ray, job, singles, open_shards, on_answers, single=True)
        missing = _missing(open_shards)
        if len(missing) == sum(int(job.plan.rows[i]) for i in left):  # not the pictures' fault
            raise UserError(
                f"none of {len(missing):,} pictures was answered: every task failed or was killed;"
                " is there memory for them, and do all machines see --input and --out? Ray's logs"
                " say more (/tmp/ray/session_latest/logs)"
            )
        for shard, row in missing:
            on_answers(_take(job, open_shards, shard, row, (None, None, _GAVE_UP, None)))


def _missing(open_shards: dict[int, shards.Shard]) -> list[tuple[int, int]]:
    return [(shard, row) for shard, kept in open_shards.items() for row in kept.missing()]


def _take(job: Job, open_shards: dict[int, shards.Shard], shard: int, row: int, answer) -> bool:
    """Keeps an answer, and writes its shard if that is complete. Returns whether it is new."""
    if shard not in open_shards:  # written already
        return False
    is_new = open_shards[shard].take(row, answer)
    if open_shards[shard].complete:
        _write(job, shard, open_shards.pop(shard))
    return is_new


def _round(ray, job: Job, chunks: np.ndarray, open_shards: dict, on_answers, *, single: bool):
    # Always close it. Otherwise Ray Data's thread finds that Ray was shut down, and ends the
    # process before it can report the error.
    with contextlib.closing(_answers(ray, job, chunks, single=single)) as tables:
        for table in tables:
            rows = zip(*(c.to_pylist() for c in table.columns), strict=True)
            on_answers(
                sum(_take(job, open_shards, shard, row, answer) for shard, row, *answer in rows)
            )


def _write(job: Job, shard: int, answers: shards.Shard) -> None:
    data = shards.encode(
        answers,
        plan.entries(job.store, shard),
        first_row=int(job.plan.rows[:shard].sum()),
        threshold=job.threshold,
        checkpoint=job.card.digest,
        job=job.id,
    )
    job.store.write(shards.name(shard), data)
    job.done.add(shard)


def _answers(ray: ModuleType, job: Job, chunks: np.ndarray, *, single: bool) -> Iterator:
    """Yields tables of `shards.ANSWERS`, in any order. A row may occur twice or, if its process is
    lost repeatedly, not at all."""
    if not len(chunks):
        return
    from mnv4_jax.fleet.scorer import Scorer  # imports JAX, which the driver must not start

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = decoding.BLOCK_BYTES
    context.max_errored_blocks = -1 if single else max(2, int(_LOST_CHUNKS * len(chunks)))
    decode = decoding.Decoder(
        out=job.store.folder,
        chunks=ray.put(chunks),
        kind=job.given.kind,
        column=job.given.column,
        transform=job.card.transform,
        least_px=job.card.least_px,
        faces=job.options.faces,
        keep_crops=job.options.keep_crops,
    )
    actors, resources, threads = _scorers(ray, job.options.scorers)
    views = ray.data.range(len(chunks), override_num_blocks=len(chunks)).map_batches(
        decode, batch_size=None, batch_format="numpy", num_cpus=0.5, max_retries=_RETRIES
    )
    answers = views.map_batches(
        Scorer,
        fn_constructor_args=(job.card, job.options.raw, threads),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        **resources,
    )
    try:
        yield from answers.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise engine.user_error(error) or error from None


def _scorers(ray: ModuleType, wanted: int) -> tuple[int, dict[str, Any], int]:
    """(actors, resources of each, threads of XLA).

    One actor per GPU or TPU host, if there are any. On CPUs one per core, with one thread: on two
    busy cores at 128 px, two actors scored 266 to 379 pictures/s, one with two threads 167 to 263.
    Actors take half of the CPUs that Ray counts, decode tasks the other half; the kernel schedules
    them.
    """
    there = ray.cluster_resources()
    if gpus := int(there.get("GPU", 0)):
        return min(wanted or gpus, gpus), {"num_gpus": 1}, 0
    if tpus := there.get("TPU", 0):
        hosts = sum("TPU" in node["Resources"] for node in ray.nodes() if node["Alive"])
        each = tpus / hosts
        return min(wanted or hosts, hosts), {"resources": {"TPU": each}}, 0
    cpus = int(there.get("CPU", 1))
    actors = wanted or cpus
    return actors, {"num_cpus": cpus / (2 * actors)}, max(1, cpus // actors)
