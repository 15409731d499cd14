"""Gathers pictures from many requests into batches for one detector."""

import asyncio
import concurrent.futures
import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline import transforms
from input_pipeline.decode import DecodeError, Limits, decode
from input_pipeline.faces import FaceFinder
from mnv4_jax.detector import explain
from mnv4_jax.detector.detector import Detector, Pictures
from mnv4_jax.detector.views import View, face_views
from mnv4_jax.serving.bodies import Busy

MOST_WAITING = 256  # pictures; further ones are refused
# So decoding one picture takes at most 1 GiB; docs/DEPLOY.md has the sum.
LIMITS = Limits(other=2**25, png_16_bit=2**24)
_MOST_EXPLAINED = 4  # pictures at a time; further ones are refused
_BATCH = 16
_WAIT_S = 0.005  # waiting time for more pictures, after the first one


class _Job(NamedTuple):
    data: bytes
    answer: asyncio.Future


class Scorer:
    """One batch at a time, in one thread. It decodes one picture after another and keeps only what
    the detector reads of each: two large ones together may not fit into memory.

    Args:
      detector: the detector.
      finder: cuts out the faces of photographs first, see `views.face_views`; None: score all of
        a picture.
    """

    def __init__(self, detector: Detector, finder: FaceFinder | None):
        self._detector = detector
        size = detector.transform.size
        self._of_cut = copy.copy(detector)  # for views that are cut already
        self._of_cut.transform = transforms.Transform(size, size, "native")
        self._finder = finder
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue(MOST_WAITING)
        self._scoring = concurrent.futures.ThreadPoolExecutor(1, "score")
        self._task: asyncio.Task | None = None
        self._explaining = 0

    @property
    def waiting(self) -> int:
        return self._waiting.qsize()

    def start(self) -> None:
        """Call it within a running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops; waiting pictures get no answer."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._scoring.shutdown(wait=False, cancel_futures=True)

    async def ask(self, pictures: Sequence[bytes]) -> list[list[dict[str, Any]] | DecodeError]:
        """For each encoded picture, one {"p_fake", "reason", "face"} for each view, or the error in
        reading it.

        Raises:
          Busy: too many pictures are waiting already.
        """
        if self.waiting + len(pictures) > MOST_WAITING:
            raise Busy(f"{self.waiting} pictures wait already")
        loop = asyncio.get_running_loop()
        jobs = [_Job(data, loop.create_future()) for data in pictures]
        for job in jobs:
            self._waiting.put_nowait(job)
        answers = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, DecodeError):
                raise answer
        return answers

    async def explain(self, data: bytes, view: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """The explanation map of a picture's `view`, counted from 0.

        Returns:
          [S, S, 3] uint8, and its place in the picture: left, top, width, height in px.

        Raises:
          DecodeError: the picture cannot be read, or has no such view.
          Busy: too many maps are being made already.
        """
        if self._explaining >= _MOST_EXPLAINED:
            raise Busy(f"{self._explaining} explanation maps are being made already")
        loop = asyncio.get_running_loop()
        self._explaining += 1
        try:
            return await loop.run_in_executor(self._scoring, self._map, data, view)
        finally:
            self._explaining -= 1

    def _map(self, data: bytes, number: int) -> tuple[np.ndarray, tuple[int, ...]]:
        pixels = decode(data, LIMITS)
        views = self._views(pixels) or [View(pixels)]
        if not 0 <= number < len(views):
            raise DecodeError(f"no face {number} in it, of {len(views)} from 0 on")
        view = views[number]
        ((_, seen, heat),) = explain.explain_source(self._detector, Pictures([view.pixels]))
        height, width = view.pixels.shape[:2]
        side = self._detector.transform.side(height, width)
        left, top = view.box[:2] if view.box else (0, 0)
        box = (left + (width - side) // 2, top + (height - side) // 2, side, side)
        return explain.overlay(seen, heat), box

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = [await self._waiting.get()]
            await asyncio.sleep(_WAIT_S)
            while len(jobs) < _BATCH and not self._waiting.empty():
                jobs.append(self._waiting.get_nowait())
            pictures = [job.data for job in jobs]
            try:
                answers = await loop.run_in_executor(self._scoring, self._score, pictures)
            except Exception as error:  # only this batch is lost
                answers = [error] * len(jobs)
            for job, answer in zip(jobs, answers, strict=True):
                if job.answer.done():  # the client has gone
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    def _views(self, pixels: np.ndarray) -> list[View]:
        if self._finder is None:
            return [View(pixels)]
        return face_views(pixels, self._finder, keep_crops=True)

    def _cut(self, view: View) -> View:
        """The view with a copy of what the detector reads of it: [S, S, 3], or less if refused."""
        shorter = min(view.pixels.shape[:2])
        if shorter < self._detector.least_px:  # as it is, so that the answer says how small
            return view._replace(pixels=view.pixels[:shorter, :shorter].copy())
        transform = self._detector.transform
        seen = np.empty((transform.size, transform.size, 3), np.uint8)
        transforms.evaluate(view.pixels, transform, seen)
        return view._replace(pixels=seen)

    def _read(self, data: bytes) -> list[View] | DecodeError:
        try:
            return [self._cut(view) for view in self._views(decode(data, LIMITS))]
        except DecodeError as error:
            return error
        except Exception as error:  # the face finder's; the batch's other pictures are answered
            return DecodeError(type(error).__name__)

    def _score(self, pictures: list[bytes]) -> list[list[dict[str, Any]] | DecodeError]:
        read = [self._read(data) for data in pictures]
        cut = [view.pixels for views in read if isinstance(views, list) for view in views]
        answers = iter(self._of_cut.answers(cut))
        out = []
        for views in read:
            if isinstance(views, DecodeError):
                out.append(views)
            elif not views:
                out.append([{"p_fake": None, "reason": "no face found", "face": None}])
            else:
                scored = ((view, next(answers)) for view in views)
                out.append(
                    [{"p_fake": a.p_fake, "reason": a.reason, "face": v.box} for v, a in scored]
                )
        return out
