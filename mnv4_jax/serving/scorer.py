"""Gathers pictures from many requests into batches for one detector."""

import asyncio
import concurrent.futures
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.decode import DecodeError, decode
from input_pipeline.faces import FaceFinder
from mnv4_jax.detector import explain
from mnv4_jax.detector.detector import Detector, Pictures
from mnv4_jax.detector.views import View, face_views
from mnv4_jax.serving.bodies import Busy

MOST_WAITING = 256  # pictures; further ones are refused
_MOST_EXPLAINED = 4  # pictures at a time, each of which is in memory as pixels
_BATCH = 16
_WAIT_S = 0.005  # waiting time for more pictures, after the first one


class _Job(NamedTuple):
    data: bytes
    answer: asyncio.Future


class Scorer:
    """One batch at a time: faces are found and scored in one thread, pictures decoded in others.

    Args:
      detector: the detector.
      find_faces: cut out the faces of photographs first, see `views.face_views`.
    """

    def __init__(self, detector: Detector, *, find_faces: bool):
        self._detector = detector
        self._finder = FaceFinder() if find_faces else None
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue(MOST_WAITING)
        self._decoders = concurrent.futures.ThreadPoolExecutor(2, "decode")
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
        self._decoders.shutdown(wait=False, cancel_futures=True)
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
            pixels = await loop.run_in_executor(self._decoders, decode, data)
            return await loop.run_in_executor(self._scoring, self._map, pixels, view)
        finally:
            self._explaining -= 1

    def _map(self, pixels: np.ndarray, number: int) -> tuple[np.ndarray, tuple[int, ...]]:
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
            decoded = [loop.run_in_executor(self._decoders, decode, job.data) for job in jobs]
            pictures = await asyncio.gather(*decoded, return_exceptions=True)
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

    def _score(self, pictures: list) -> list:
        views = [[] if isinstance(p, BaseException) else self._views(p) for p in pictures]
        answers = iter(self._detector.answers([v.pixels for vs in views for v in vs]))
        out = []
        for picture, of_picture in zip(pictures, views, strict=True):
            if isinstance(picture, DecodeError):
                out.append(picture)
            elif isinstance(picture, BaseException):
                out.append(DecodeError(type(picture).__name__))
            elif not of_picture:
                out.append([{"p_fake": None, "reason": "no face found", "face": None}])
            else:
                scored = ((view, next(answers)) for view in of_picture)
                out.append(
                    [{"p_fake": a.p_fake, "reason": a.reason, "face": v.box} for v, a in scored]
                )
        return out
