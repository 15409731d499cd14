"""The static page in a real Chromium, below a path of a plain static server, against `predict`."""

import contextlib
import functools
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import small
from input_pipeline.cli import UserError
from mnv4_jax.convert import to_torch
from mnv4_jax.detector import saved as detectors
from mnv4_jax.detector.detector import Detector
from mnv4_jax.models import weights
from tests.pictures import encoded, smooth
from tests.processes import ROOT

browsers = pytest.importorskip("tests.browser", reason="the extra `browser` is missing")
pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")

from mnv4_jax.export import onnx, web  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.onnx]


def convert(out, *flags):
    return subprocess.run(
        [sys.executable, "-m", "mnv4_jax.convert", "--to=web", f"--out={out}", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A static server's folder, with the page of the detector in the box below it."""
    if not web.package().is_file():
        pytest.skip("the runtime is not in MNV4_CACHE: python -m mnv4_jax.convert --to=web once")
    root = tmp_path_factory.mktemp("root")
    done = convert(root / "below" / "a path")
    assert done.returncode == 0, done.stderr
    return root


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # a page that was closed wants the rest no more


@contextlib.contextmanager
def static_server(root):
    """The address of `root`'s page on a server of the standard library."""
    handler = functools.partial(Quiet, directory=root)
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/below/a%20path/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def site(root):
    with static_server(root) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, site, request):
    with browsers.opened(browser, site, **getattr(request, "param", {})) as page:
        yield page


@pytest.fixture(scope="module")
def drawn(portraits, tmp_path_factory):
    """32 files: drawn faces of several sizes, and what else people have."""
    folder = tmp_path_factory.mktemp("drawn")
    faces = [Image.open(file) for file in sorted((portraits / "Test").glob("*/[0-9]*.jpg"))]
    for i, face in enumerate(faces[:20]):
        side = (0, 200, 300, 57)[i % 4]
        face = face.resize((side, side), Image.BICUBIC) if side else face
        (folder / f"{i:02}.jpg").write_bytes(encoded(face, quality=(75, 95)[i % 2], subsampling=2))
    for i, (width, height) in enumerate([(400, 300), (1400, 900), (640, 640), (333, 777)]):
        scene = Image.fromarray(smooth(height, width))
        for k in range(1 + i % 3):  # several faces, none of which fills the picture
            side = min(width, height) // 3
            at = (k * width // 3, height // 2 - k * side // 3)
            scene.paste(faces[(5 * i + k) % 24].resize((side, side), Image.BICUBIC), at)
        (folder / f"scene {i}.png").write_bytes(encoded(scene, "PNG"))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    (folder / "turned.jpg").write_bytes(encoded(faces[8].rotate(90), exif=exif))
    (folder / "grey.jpg").write_bytes(encoded(faces[9].convert("L"), subsampling=-1))
    (folder / "lossless.webp").write_bytes(encoded(faces[10], "WEBP", lossless=True))
    (folder / "picture.bmp").write_bytes(encoded(faces[11], "BMP"))
    (folder / "picture.gif").write_bytes(encoded(faces[12].quantize(64), "GIF"))
    (folder / "one colour.png").write_bytes(encoded(Image.new("RGB", (99, 99), "red"), "PNG"))
    (folder / "progressive.jpg").write_bytes(encoded(faces[13], progressive=True, subsampling=1))
    see_through = faces[14].copy()
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    (folder / "see-through.png").write_bytes(encoded(see_through, "PNG"))
    return folder


@pytest.fixture(scope="module")
def photographs(image_sets):
    folder = image_sets / "rvf10k" / "Test"
    if not folder.is_dir():
        pytest.skip("no rvf10k in MNV4_DATA")
    return folder


@pytest.mark.parametrize("pictures", ["drawn", "photographs"])
def test_32_pictures_get_the_answers_of_predict(page, pictures, request):
    folder = request.getfixturevalue(pictures)
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    files = [str(found[i]) for i in np.linspace(0, len(found) - 1, 32).astype(int)]
    done = subprocess.run(
        [sys.executable, "-m", "mnv4_jax.predict", "--json", *files],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    page.set_input_files("#files", files)
    browsers.answers(page, len(expected))
    rows = saved(page)
    scored = 0
    for file in files:
        theirs = [line for line in expected if line["file"] == file]
        ours = [row for row in rows if row["file"] == pathlib.Path(file).name]
        assert len(ours) == len(theirs) >= 1, file
        for row, line in zip(ours, theirs, strict=True):
            no_face = "face" in line and line["face"] is None
            assert row["reason"] == ("no face found" if no_face else line.get("reason")), file
            # the finder's weights are kept in float16: a box may move by a pixel
            assert (row["face"] is None) == (line.get("face") is None), file
            np.testing.assert_allclose(row["face"] or 0, line.get("face") or 0, atol=2)
            if line["p_fake"] is None:
                assert row["p_fake"] is None, file
            else:
                assert row["p_fake"] == pytest.approx(line["p_fake"], abs=0.01), file
                scored += 1
    assert scored >= 20


def saved(page):
    with page.expect_download() as download:
        page.click("#json")
    return json.loads(pathlib.Path(download.value.path()).read_text())


def test_a_dropped_picture_gets_its_answer(page, drawn):
    browsers.drop(page, "dropped.jpg", (drawn / "01.jpg").read_bytes())
    (row,) = browsers.answers(page, 1)
    assert "dropped.jpg" in row.inner_text() and "called" in row.inner_text()


def test_twenty_with_a_damaged_one_are_all_answered(page, drawn, tmp_path):
    whole = (drawn / "01.jpg").read_bytes()
    bad = {
        "empty.jpg": b"",
        "text.jpg": b"no picture at all",
        "half.jpg": whole[: len(whole) // 2],
        "nearly.jpg": whole[: len(whole) * 99 // 100],
        "half.png": (drawn / "scene 0.png").read_bytes()[:5000],
        "huge.png": huge_header(),
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    files = [*(drawn / f"{i:02}.jpg" for i in range(20)), *(tmp_path / name for name in bad)]
    page.set_input_files("#files", files)
    browsers.answers(page, len(files))
    browsers.sync_api.expect(page.locator("#status")).to_have_text(f"{len(files)} done")
    reasons = {row["file"]: row for row in saved(page)}
    for name in bad:
        assert reasons[name]["p_fake"] is None and "unreadable" in reasons[name]["reason"], name
    assert sum(row["p_fake"] is not None for row in reasons.values()) >= 10


def huge_header():
    """A PNG that claims 100,000 × 100,000 px."""
    data = bytearray(encoded(smooth(80, 80), "PNG"))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize("side", [31, 64, 100, 127, 129, 146, 256, 300])
def test_scaling_is_opencvs(page, side):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    rgba = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    ours = page.evaluate(
        """async ([data, side]) => { const { scaled } = await import("./pixels.js");
        return [...scaled({ data, width: side, height: side }, 0, 0, side, 128)]; }""",
        [rgba.ravel().tolist(), side],
    )
    how = cv2.INTER_AREA if side > 128 else cv2.INTER_CUBIC
    theirs = cv2.resize(pixels, (128, 128), interpolation=how)
    difference = np.abs(np.reshape(ours, theirs.shape) - theirs)
    if how == cv2.INTER_AREA:
        assert difference.max() == 0
    else:  # OpenCV's builds round its weights differently
        assert difference.max() <= 1


def test_the_page_works_without_a_network_afterwards(browser, root, drawn):
    context = browser.new_context()
    page = context.new_page()
    with static_server(root) as address:
        page.goto(address)
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    page.reload()  # the server is gone
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    page.set_input_files("#files", drawn / "01.jpg")
    (row,) = browsers.answers(page, 1)
    assert "called" in row.inner_text()
    context.close()


def test_it_says_that_there_are_no_maps_and_has_no_dead_button(page, drawn):
    page.set_input_files("#files", drawn / "01.jpg")
    browsers.answers(page, 1)
    assert page.locator("text=Where?").count() == 0
    assert "no explanation maps" in page.inner_text("footer")
    assert "no picture leaves this machine" in page.inner_text("header")


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}}], indirect=True)
def test_nothing_is_wider_than_a_small_phone(page, drawn):
    page.set_input_files("#files", [drawn / "01.jpg", drawn / "scene 0.png"])
    browsers.answers(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize(
    "page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True
)
def test_rules_of_accessibility_are_kept(page, drawn):
    axe = os.environ.get("MNV4_AXE")
    if not axe:
        pytest.skip("MNV4_AXE does not name axe-core's axe.min.js")
    page.set_input_files("#files", [drawn / "01.jpg", drawn / "one colour.png"])
    browsers.answers(page, 2)
    assert browsers.accessibility_faults(page, axe) == []


def test_the_folder_is_small_and_has_no_inline_script(root):
    folder = root / "below" / "a path"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 30e6
    page = (folder / "index.html").read_text()
    assert "default-src 'none'" in page and "unsafe-inline" not in page
    assert "<script>" not in page and "onclick" not in page
    ours = [file for file in folder.glob("*") if file.suffix in (".html", ".css", ".js")]
    assert not [file for file in ours if "https://" in file.read_text()]


def test_packed_weights_give_the_same_answers(drawn):
    whole = onnx.export(to_torch(Detector()))
    packed = web.pack(whole)
    assert len(packed) < 0.55 * len(whole)
    pictures = np.stack(
        [cv2.resize(cv2.imread(str(f)), (128, 128)) for f in sorted(drawn.glob("*.jpg"))]
    )
    ours, theirs = (onnx.run(onnx.make_session(m), pictures) for m in (packed, whole))
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.slow
def test_a_second_time_replaces_and_a_checkpoint_of_ones_own_scores_whole_pictures(root, tmp_path):
    config = small.get_config()
    detectors.write_initial(tmp_path / "run", config, weights.fresh_weights(config))
    site = tmp_path / "site"
    for _ in range(2):
        done = convert(site, f"--checkpoint={tmp_path / 'run'}")
        assert done.returncode == 0, done.stderr
    facts = json.loads((site / "model.json").read_text())
    assert not facts["faces"] and not (site / "centerface.onnx").exists()


def test_foreign_files_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "sw.js").write_text("a service worker has this name on any site")
    with pytest.raises(UserError, match=f"--out={tmp_path}: has other files"):
        web.build(tmp_path, None, b"", find_faces=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.txt", "sw.js"]


def test_without_npm_or_with_another_package_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MNV4_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--to=web needs npm"):
        web.build(tmp_path / "site", None, b"", find_faces=True)
    web.package().parent.mkdir()
    web.package().write_bytes(b"something else")
    with pytest.raises(UserError, match="its digest differs"):
        web.build(tmp_path / "site", None, b"", find_faces=True)
    assert not (tmp_path / "site").exists()
