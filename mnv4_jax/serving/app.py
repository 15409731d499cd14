"""The HTTP interface: its requests, their limits, and its answers."""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware

from input_pipeline.decode import DecodeError
from input_pipeline.faces import FaceFinder
from mnv4_jax.detector.detector import Detector
from mnv4_jax.serving.bodies import Bodies, Busy
from mnv4_jax.serving.scorer import Scorer

_STATIC = pathlib.Path(__file__).with_name("static")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """The answer of `/v1/model`: JSON values."""

    labels: tuple[str, ...]
    thresholds: dict[str, float]
    image_size_px: int
    faces: bool
    versions: dict[str, str]
    card: str


def make_app(detector: Detector, facts: Facts, hosts: list[str]) -> FastAPI:
    """The application.

    Args:
      hosts: allowed values of the Host header; others are refused (DNS rebinding).
    """
    scorer: Scorer | None = None
    bodies = Bodies()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal scorer
        scorer = Scorer(detector, FaceFinder() if facts.faces else None)
        scorer.start()
        yield
        await scorer.stop()

    app = FastAPI(
        title="mnv4_jax", version=facts.versions["mnv4_jax"], docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    registry = CollectorRegistry()
    pictures = Counter("mnv4_pictures", "Pictures asked about", ["outcome"], registry=registry)
    seconds = Histogram("mnv4_request_seconds", "Of /v1/predict", registry=registry)
    Gauge("mnv4_waiting", "Pictures that wait", registry=registry).set_function(
        lambda: scorer.waiting if scorer else 0
    )

    @app.middleware("http")
    async def add_headers(request: Request, call_next):
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> Response:
        return JSONResponse({"detail": f"{error}: try again"}, 503, headers={"retry-after": "1"})

    @app.post("/v1/predict")
    async def predict(request: Request, threshold: float = 0.5) -> dict[str, Any]:
        """The answer for every face of the pictures in the body: one picture as it is, or several
        as multipart/form-data. `results` has the objects that `predict --json` prints."""
        if not 0 <= threshold <= 1:  # nor nan
            raise HTTPException(422, f"threshold={threshold}: must be from 0 to 1")
        results = []
        with seconds.time():
            async with bodies.files(request) as files:
                answers = await scorer.ask([data for _, data in files])
        for (name, _), answer in zip(files, answers, strict=True):
            if isinstance(answer, DecodeError):
                pictures.labels("unreadable").inc()
                error = f"unreadable: {answer}"
                results.append({"file": name, "p_fake": None, "label": None, "error": error})
                continue
            pictures.labels("answered").inc()
            for row in answer:
                p = row["p_fake"]
                label = None if p is None else "fake" if p >= threshold else "real"
                kept = {key: row[key] for key in ("reason", "face") if row[key]}
                results.append({"file": name, "p_fake": p, "label": label, **kept})
        return {"results": results}

    @app.post("/v1/explain", response_class=Response)
    async def explain(request: Request, face: int = 0) -> Response:
        """A PNG: one face of the picture in the body, from 0, orange where it speaks for fake, blue
        where for real. The header `seen` says where it is: left,top,width,height in px."""
        async with bodies.files(request) as ((_, data), *_rest):
            try:
                overlay, box = await scorer.explain(data, face)
            except DecodeError as error:
                raise HTTPException(422, f"unreadable: {error}") from None
        png = io.BytesIO()
        Image.fromarray(overlay).save(png, "PNG")
        seen = ",".join(map(str, box))
        return Response(png.getvalue(), media_type="image/png", headers={"seen": seen})

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """The detector: labels, thresholds by false-alarm rate, view, versions, card."""
        return dataclasses.asdict(facts)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return (_STATIC / "docs.html").read_text()

    app.mount("/", StaticFiles(directory=_STATIC, html=True))
    return app
