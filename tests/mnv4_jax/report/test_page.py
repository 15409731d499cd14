"""The report in a real browser: nothing in the console, plots and pictures visible, nothing cut."""

import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from mnv4_jax import evaluate
from mnv4_jax.measure.corruptions import CORRUPTIONS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)
# Runs in the page after it has loaded; the DOM is dumped afterwards.
MEASURE = """<script>addEventListener("load", () => {
  const boxes = (query, more) => [...document.querySelectorAll(query)].map((e) => {
    const b = e.getBoundingClientRect();
    return {name: e.getAttribute("aria-label") || e.alt, x: b.x, y: b.y + scrollY,
            width: b.width, height: b.height, ...more(e)};
  });
  const shown = (e) => [...e.querySelectorAll("path, use, text")].filter((p) => {
    const b = p.getBoundingClientRect(), style = getComputedStyle(p);
    return b.width + b.height > 0 && (style.stroke !== "none" || style.fill !== "none");
  }).length;
  document.body.dataset.measured = JSON.stringify({
    svgs: boxes("svg", (e) => ({shown: shown(e), text: e.textContent})),
    images: boxes("img", (e) => ({natural: e.naturalWidth})),
    width: innerWidth, scrolls: document.documentElement.scrollWidth,
  });
});</script>"""


@pytest.fixture(scope="module")
def page(run, portraits, tmp_path_factory):
    """A report, with a script that measures it."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            "sys.argv",
            ["", f"--checkpoint={run}", f"--data={portraits}", f"--out={out}", "--robustness=4"],
        )
        evaluate.main()
    html = (out / "report.html").read_text(encoding="utf-8")
    (out / "measured.html").write_text(html + MEASURE, encoding="utf-8")
    return out


def browse(folder, *arguments):
    """Runs chromium on a profile of its own. Returns its standard output and error."""
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("width", [1200, 500])  # 500: the least that headless chromium has
def test_plots_and_pictures_are_visible_and_the_console_is_empty(page, tmp_path, width):
    dom, log = browse(
        tmp_path,
        f"--window-size={width},900",
        "--dump-dom",
        f"file://{page / 'measured.html'}",
    )
    assert "CONSOLE" not in log
    measured = re.search(r'data-measured="([^"]*)"', dom)[1].replace("&quot;", '"')
    measured = json.loads(measured.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert len(measured["svgs"]) == 6 + len(CORRUPTIONS)
    for svg in measured["svgs"]:
        assert svg["width"] > 150, svg
        assert svg["height"] > 150, svg
        assert svg["shown"] > 15, svg
    assert "false-alarm rate" in measured["svgs"][0]["text"]
    assert measured["images"]
    for image in measured["images"]:
        assert image["natural"] == 64
        assert image["width"] > 60
    assert measured["scrolls"] <= measured["width"]  # tables scroll by themselves


def test_a_script_error_would_be_seen(page, tmp_path):
    """That the console's messages reach the log is what the test above relies on."""
    (tmp_path / "bad.html").write_text("<script>missing()</script>")
    _, log = browse(tmp_path, "--dump-dom", f"file://{tmp_path / 'bad.html'}")
    assert "CONSOLE" in log


def test_light_and_dark_follow_the_reader(page, tmp_path):
    def shot(*arguments):
        file = tmp_path / "shot.png"
        browse(
            tmp_path,
            "--window-size=900,900",
            f"--screenshot={file}",
            *arguments,
            f"file://{page / 'report.html'}",
        )
        return cv2.imread(str(file)).astype(int)

    light, dark = shot(), shot("--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 240
    assert np.median(dark) < 40
    for image in (light, dark):  # ink on either: headings, and the curve of the first plots
        assert np.abs(image - np.median(image)).max(axis=2).astype(bool).mean() > 0.05
        assert np.abs(image - np.median(image)).max() > 180
