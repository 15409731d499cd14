"""The HTTP interface against the library, and against what a stranger may send."""

import asyncio
import collections
import concurrent.futures
import contextlib
import io
import json
import pathlib
import re
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from mnv4_jax.detector.detector import Detector
from tests.mnv4_jax.serving.conftest import RUN
from tests.pictures import encoded
from tests.processes import ROOT

httpx = pytest.importorskip("httpx", reason="the extra `serve` or `browser` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` or `browser` is not installed")
import uvicorn  # noqa: E402
from uvicorn.protocols.http.auto import AutoHTTPProtocol  # noqa: E402

from mnv4_jax.serving import bodies  # noqa: E402
from mnv4_jax.serving.app import Facts, make_app  # noqa: E402
from mnv4_jax.serving.connections import closing_slow  # noqa: E402
from mnv4_jax.serving.scorer import Scorer  # noqa: E402

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def files(portraits):
    return sorted((portraits / "Test" / "Real").glob("*.jpg"))


def ask(client, data, **headers):
    return client.post("v1/predict", content=data, headers=headers)


def test_one_picture_gets_the_librarys_answer(client, run, files):
    (result,) = ask(client, files[0].read_bytes()).json()["results"]
    assert result["p_fake"] == pytest.approx(Detector(run)([files[0]])[0], abs=1e-6)
    assert result["label"] == ("fake" if result["p_fake"] >= 0.5 else "real")


def test_several_pictures_keep_their_names_and_order(client, run, files):
    form = [("picture", (file.name, file.read_bytes())) for file in files]
    results = client.post("v1/predict", files=form).json()["results"]
    assert [r["file"] for r in results] == [file.name for file in files]
    np.testing.assert_allclose([r["p_fake"] for r in results], Detector(run)(files), atol=1e-6)


def test_a_threshold_moves_the_label_alone(client, files):
    data = files[0].read_bytes()
    low = client.post("v1/predict", params={"threshold": 0}, content=data).json()["results"][0]
    high = client.post("v1/predict", params={"threshold": 1}, content=data).json()["results"][0]
    assert (low["label"], high["label"]) == ("fake", "real")
    assert low["p_fake"] == high["p_fake"]


@pytest.mark.parametrize("threshold", ["nan", "inf", "-0.1", "1.1"])
def test_a_threshold_that_is_no_share_is_one_line(client, files, threshold):
    data = files[0].read_bytes()
    response = client.post("v1/predict", params={"threshold": threshold}, content=data)
    assert response.status_code == 422
    assert response.json()["detail"] == f"threshold={threshold}: must be from 0 to 1"


def form_of(charset, name, data):
    """(body, headers) of a form that names its charset, as no browser does."""
    disposition = f'Content-Disposition: form-data; name="picture"; filename="{name}"'
    body = f"--x\r\n{disposition}\r\n\r\n".encode() + data + b"\r\n--x--\r\n"
    return body, {"content-type": f"multipart/form-data; charset={charset}; boundary=x"}


def test_a_name_of_half_a_character_is_answered_without_it(client, files):
    body, headers = form_of("unicode_escape", r"a\ud800.jpg", files[0].read_bytes())
    response = client.post("v1/predict", content=body, headers=headers)
    assert response.status_code == 200
    (result,) = response.json()["results"]
    assert result["file"] == "a?.jpg" and result["p_fake"] is not None


@pytest.mark.parametrize("charset", ["undefined", "punycode"])
def test_a_charset_that_decodes_no_name_is_refused(client, charset):
    body, headers = form_of(charset, "a..b", b"x")
    response = client.post("v1/predict", content=body, headers=headers)
    assert response.status_code == 422 and "charset" in response.json()["detail"]


def test_an_unreadable_picture_does_not_cost_the_others(client, files):
    form = [("a", ("no.jpg", b"no picture")), ("b", ("yes.jpg", files[0].read_bytes()))]
    bad, good = client.post("v1/predict", files=form).json()["results"]
    assert bad["p_fake"] is None and bad["error"].startswith("unreadable")
    assert good["p_fake"] is not None


def png(mode="RGB", size=(80, 80), **options):
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(data, options.pop("format", "PNG"), **options)
    return data.getvalue()


def huge_header():
    """A PNG that claims 100,000 × 100,000 px."""
    data = bytearray(png())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\0" * 1000, "unreadable"),
        (png()[:500], "unreadable"),
        (huge_header(), "unreadable"),
        (png("CMYK", format="JPEG"), "score"),
        (png("L"), "score"),
        (png(size=(20, 20)), "too small"),
    ],
    ids=["zeros", "truncated", "huge", "cmyk", "grey", "small"],
)
def test_odd_pictures_get_one_clear_answer(client, data, answer):
    response = ask(client, data)
    assert response.status_code == 200
    (result,) = response.json()["results"]
    if answer == "score":
        assert 0 <= result["p_fake"] <= 1
    else:
        assert result["p_fake"] is None
        assert answer in (result.get("error") or result["reason"])


def plain(mode, side, format="PNG"):
    return encoded(Image.new(mode, (side, side)), format)


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (plain("1", 6000), "33,554,432 pixels"),
        (plain("I;16", 4200), "16,777,216 pixels"),
    ],
    ids=["large", "16 bits"],
)
def test_a_picture_too_large_to_decode_is_refused(client, data, most):
    (result,) = ask(client, data).json()["results"]
    assert f"px are more than the {most} allowed" in result["error"]


def test_large_pictures_are_decoded_one_at_a_time(client, started):
    _, process = started
    peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) // 1024  # noqa: E731
    status = pathlib.Path(f"/proc/{process.pid}/status")
    large = plain("RGB", 5000, "JPEG")  # 72 MiB as pixels
    client.post("v1/predict", files=[("picture", ("large.jpg", large))])
    one = peak()
    results = client.post("v1/predict", files=[("picture", ("large.jpg", large))] * 8).json()
    assert [r["reason"] for r in results["results"]] == ["one colour only"] * 8
    assert peak() - one < 72  # MiB


def test_a_failing_face_finder_costs_one_picture(run, files):
    def finder(pixels):
        if not pixels.any():
            raise ValueError("black")
        return []

    async def score():
        scorer = Scorer(Detector(run), finder)
        scorer.start()
        try:
            return await scorer.ask([plain("RGB", 80), files[0].read_bytes()])
        finally:
            await scorer.stop()

    failed, answered = asyncio.run(score())
    assert str(failed) == "ValueError"
    assert answered == [{"p_fake": None, "reason": "no face found", "face": None}]


def test_too_much_is_refused_before_it_is_read(client, server):
    assert ask(client, b"").status_code == 422
    assert client.post("v1/predict", files=[("a", ("a", b"x"))] * 65).status_code == 422
    host, port = urlsplit(server).hostname, urlsplit(server).port
    with socket.create_connection((host, port), timeout=30) as stranger:
        stranger.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        )
        assert stranger.recv(200).startswith(b"HTTP/1.1 413")


def test_a_foreign_host_name_is_refused(client):
    assert client.get("healthz", headers={"host": "evil.example"}).status_code == 400
    assert client.get("healthz", headers={"host": "localhost"}).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(client):
    for path in ("", "docs", "v1/model"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert "access-control-allow-origin" not in headers
    for path in ("", "page.js", "page.css", "docs", "docs.js"):
        text = client.get(path).text.replace("http://127.0.0.1:8000", "")
        assert "http://" not in text and "https://" not in text, path


def test_many_at_once_are_all_answered_or_told_to_try_again(client, server, files):
    data = files[0].read_bytes()

    def ask_alone(_):
        return httpx.post(f"{server}v1/predict", content=data, timeout=120).status_code

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(ask_alone, range(96)))
    assert set(statuses) <= {200, 503} and statuses.count(200) > 32


@pytest.fixture
def held(run):
    """(client of an application in this process, event): no answer before the event is set."""
    may_answer = threading.Event()

    class Held(Detector):
        def answers(self, images, **options):
            assert may_answer.wait(60)
            return super().answers(images, **options)

    app = make_app(Held(run), Facts(("fake", "real"), {}, 64, False, {"mnv4_jax": "0"}, ""), ["*"])

    @contextlib.asynccontextmanager
    async def opened():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client,
        ):
            yield client

    return opened, may_answer


def test_more_than_may_wait_are_told_when_to_ask_again(held, files):
    opened, may_answer = held
    form = [("picture", (file.name, file.read_bytes())) for file in files * 6][:64]

    async def ask_six_times():
        async with opened() as client:
            asked = [asyncio.create_task(client.post("v1/predict", files=form)) for _ in range(6)]
            done, _ = await asyncio.wait(asked, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            assert done  # though none of the others can be answered yet
            may_answer.set()
            responses = await asyncio.gather(*asked)
            later = await client.post("v1/predict", content=files[0].read_bytes())
            return [task.result() for task in done], responses, later

    first, responses, later = asyncio.run(ask_six_times())
    for response in first:
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert "pictures wait already: try again" in response.json()["detail"]
    # 16 in the batch and 256 that wait: four times 64
    assert sum(response.status_code == 200 for response in responses) >= 4
    assert later.status_code == 200


def test_bodies_that_wait_have_a_limit_together(held, files, monkeypatch):
    opened, may_answer = held
    data = files[0].read_bytes()
    monkeypatch.setattr(bodies, "MOST_HELD", 2 * len(data))

    async def ask_three_times():
        async with opened() as client:
            asked = [asyncio.create_task(client.post("v1/predict", content=data)) for _ in range(3)]
            done, _ = await asyncio.wait(asked, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            may_answer.set()
            responses = await asyncio.gather(*asked)
            return [task.result() for task in done], responses, await client.get("healthz")

    first, responses, _ = asyncio.run(ask_three_times())
    assert [response.status_code for response in first] == [503]
    assert first[0].headers["retry-after"] == "1"
    assert sorted(response.status_code for response in responses) == [200, 200, 503]


@contextlib.contextmanager
def listening(app, **options):
    """A function that connects to `app` on loopback; the server has ended when the block has."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield lambda: socket.create_connection(listener.getsockname(), timeout=30)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def test_an_upload_that_is_broken_off_is_not_logged(run, caplog):
    app = make_app(
        Detector(run), Facts(("fake", "real"), {}, 64, False, {"mnv4_jax": "0"}, ""), ["*"]
    )
    with listening(app) as connect, connect() as client:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
        client.sendall(head + b"Content-Length: 9\r\n\r\n")
        assert b"100 Continue" in client.recv(100)  # the body is being read
    assert caplog.text == ""


def test_a_connection_without_a_request_is_closed_and_a_slow_answer_is_not():
    may_answer = threading.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        assert await asyncio.to_thread(may_answer.wait, 30)
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    protocol = closing_slow(AutoHTTPProtocol, head_s=0.2)
    with listening(app, http=protocol, lifespan="off") as connect, connect() as asking:
        asking.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with connect() as silent, connect() as slow:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            assert silent.recv(1) == slow.recv(1) == b""
        may_answer.set()
        assert asking.recv(1000).startswith(b"HTTP/1.1 204")
        asking.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert asking.recv(1000).startswith(b"HTTP/1.1 204")
        asking.sendall(b"GET /")
        assert asking.recv(1) == b""


def test_what_is_measured_and_described(client, run):
    facts = client.get("v1/model").json()
    assert facts["thresholds"] == Detector(run).thresholds
    assert facts["labels"] == ["fake", "real"]
    assert "mnv4_pictures_total" in client.get("metrics").text
    assert "/v1/predict" in client.get("openapi.json").json()["paths"]


def test_maps_that_are_being_made_have_a_limit(held, files):
    opened, may_answer = held
    data = files[0].read_bytes()

    async def ask():
        async with opened() as client:
            scored = asyncio.create_task(client.post("v1/predict", content=data))
            maps = [asyncio.create_task(client.post("v1/explain", content=data)) for _ in range(6)]
            done, _ = await asyncio.wait(maps, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            refused = [task.result().status_code for task in done]
            may_answer.set()  # the others wait behind the scored picture
            responses = await asyncio.gather(scored, *maps)
            return refused, [response.status_code for response in responses]

    refused, statuses = asyncio.run(ask())
    assert set(refused) == {503}
    assert sorted(statuses) == [200] * 5 + [503] * 2


def test_a_map_is_a_picture(client, files):
    response = client.post("v1/explain", content=files[0].read_bytes())
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.format == "PNG" and min(image.size) >= 32
        left, top, width, height = map(int, response.headers["seen"].split(","))
    with Image.open(files[0]) as picture:
        assert left + width <= picture.width and top + height <= picture.height
        assert width == height and width <= min(picture.size)
        assert abs(2 * left + width - picture.width) <= 1  # the middle
    assert client.post("v1/explain", content=b"no").status_code == 422
    beyond = client.post("v1/explain?face=1", content=files[0].read_bytes())
    assert beyond.status_code == 422 and "no face 1" in beyond.json()["detail"]


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


def mutated(rng, original: bytes) -> bytes:
    """Some cut short; bits flipped, bytes replaced, pieces doubled or taken out."""
    data = bytearray(original)
    if rng.random() < 0.25:
        del data[rng.integers(1, len(data) + 1) :]
    for _ in range(rng.integers(1, 5)):
        # a quarter of them where the header is
        at = int(rng.integers(0, len(data) if rng.random() < 0.75 else min(64, len(data))))
        kind = rng.integers(0, 4)
        if kind == 0:
            data[at] ^= 1 << rng.integers(0, 8)
        elif kind == 1:
            data[at] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.integers(0, 256)])
        elif kind == 2:
            data[at:at] = data[at : at + int(rng.integers(1, 40))]
        elif len(data) > 50:
            del data[at : at + int(rng.integers(1, 40))]
    return bytes(data)


def test_a_thousand_mutated_files_crash_nothing(client, files):
    rng = np.random.default_rng(0)
    with Image.open(files[0]) as image:
        originals = [encoded(image.copy(), format) for format in FORMATS]
    outcomes = collections.Counter()
    for _ in range(20):
        form = [
            ("picture", (str(i), mutated(rng, originals[i % len(originals)]))) for i in range(50)
        ]
        response = client.post("v1/predict", files=form)
        assert response.status_code == 200
        results = response.json()["results"]
        assert len(results) == 50
        outcomes.update(
            "scored" if r["p_fake"] is not None else "refused" if "reason" in r else "unreadable"
            for r in results
        )
    print(dict(outcomes))
    assert outcomes["unreadable"] > 100 and outcomes["scored"] > 100  # both ways were walked
    assert client.get("healthz").status_code == 200


def test_a_port_in_use_is_one_line(server):
    port = urlsplit(server).port
    second = subprocess.run(
        [sys.executable, "-m", "mnv4_jax.serve", f"--port={port}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert second.returncode == 2
    assert f"--port={port}: Address already in use; name another" in second.stderr


def test_the_answer_is_that_of_predict_json(client, run, files):
    done = subprocess.run(
        [sys.executable, "-c", RUN.format("predict"), f"--checkpoint={run}", "--json", files[0]],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (result,) = ask(client, files[0].read_bytes()).json()["results"]
    expected = json.loads(done.stdout)
    assert set(result) == set(expected)
    assert result["p_fake"] == pytest.approx(expected["p_fake"], abs=1e-6)
