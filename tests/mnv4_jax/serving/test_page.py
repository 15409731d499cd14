"""The page in a real Chromium, against the real server."""

import csv
import io
import json
import os
import pathlib

import numpy as np
import pytest

from mnv4_jax.detector.detector import Detector

browsers = pytest.importorskip("tests.browser", reason="the extra `browser` is missing")
pytestmark = [pytest.mark.serve, pytest.mark.browser]
rows, sync_api = browsers.answers, browsers.sync_api


@pytest.fixture(scope="module")
def browser():
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, server, request):
    """A page that loads without an error and asks nobody else."""
    with browsers.opened(browser, server, **getattr(request, "param", {})) as page:
        yield page


@pytest.fixture(scope="module")
def files(portraits):
    return sorted((portraits / "Test" / "Real").glob("*.jpg"))


def test_a_chosen_picture_gets_its_answer(page, run, files):
    page.set_input_files("#files", files[0])
    (row,) = rows(page, 1)
    p = Detector(run)([files[0]])[0]
    assert f"{100 * p:.1f}%" in row.inner_text()
    assert ("called fake" if p >= 0.5 else "called real") in row.inner_text()


def test_a_dropped_picture_gets_its_answer(page, files):
    browsers.drop(page, "dropped.jpg", files[0].read_bytes())
    (row,) = rows(page, 1)
    assert "dropped.jpg" in row.inner_text()


def test_many_with_a_damaged_one_are_a_table_that_is_saved(page, run, files, tmp_path):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"\xff\xd8 no picture")
    page.set_input_files("#files", [*files, bad])
    rows(page, len(files) + 1)
    with page.expect_download() as download:
        page.click("#csv")
    saved = list(csv.DictReader(io.StringIO(pathlib.Path(download.value.path()).read_text())))
    by_file = {row["file"]: row for row in saved}
    found = [float(by_file[file.name]["p_fake"]) for file in files]
    np.testing.assert_allclose(found, Detector(run)(files), atol=1e-6)
    assert by_file["broken.jpg"]["p_fake"] == "" and by_file["broken.jpg"]["reason"]
    with page.expect_download() as download:
        page.click("#json")
    assert len(json.loads(pathlib.Path(download.value.path()).read_text())) == len(files) + 1
    page.select_option("#filter", "none")
    assert page.locator("#rows tr").count() == 1
    page.select_option("#filter", "")
    page.click("th button[data-sort=p_fake]")
    shown = page.locator("#rows tr td:nth-child(3)").all_inner_texts()
    numbers = [float(text[:-1]) for text in shown if text != "–"]
    assert numbers == sorted(numbers)


def test_a_threshold_changes_answers_at_once(page, files):
    page.set_input_files("#files", files[:4])
    rows(page, 4)
    highest = page.evaluate("[...document.querySelector('#threshold').options].at(1).value")
    page.select_option("#threshold", highest)
    answers = page.locator("#rows .answer").all_inner_texts()
    shown = page.locator("#rows tr td:nth-child(3)").all_inner_texts()
    for answer, text in zip(answers, shown, strict=True):
        sure = float(text[:-1]) / 100
        if abs(sure - float(highest)) > 0.001:
            assert answer.startswith("called fake" if sure >= float(highest) else "called real")


def test_a_map_is_laid_over_the_picture_on_demand(page, files):
    page.set_input_files("#files", files[0])
    rows(page, 1)
    page.click("text=Where?")
    page.wait_for_selector("#rows .picture img")
    image = page.locator("#rows .picture img")
    sync_api.expect(image).to_have_js_property("complete", True)
    assert image.evaluate("image => image.naturalWidth") > 0
    over, under = image.bounding_box(), page.locator("#rows .picture canvas").bounding_box()
    for corner, side in (("x", "width"), ("y", "height")):
        assert under[corner] - 1 <= over[corner]
        assert over[corner] + over[side] <= under[corner] + under[side] + 1
    slider = page.locator("#rows input[type=range]")
    slider.fill("30")
    opacity = page.evaluate("document.querySelector('#rows .picture img').style.opacity")
    assert opacity == "0.3"


def test_the_keyboard_alone_is_enough(page, files):
    page.set_input_files("#files", files[:2])
    rows(page, 2)
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert {"files", "folder", "camera", "threshold", "filter", "csv", "json", "clear"} <= reached
    assert "Where?" in reached
    page.focus("#clear")
    page.keyboard.press("Enter")
    assert "No picture yet" in page.inner_text("#rows")


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}}], indirect=True)
def test_nothing_is_wider_than_a_small_phone(page, files):
    page.set_input_files("#files", files[:2])
    rows(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize(
    "page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True
)
def test_rules_of_accessibility_are_kept(page, files):
    axe = os.environ.get("MNV4_AXE")
    if not axe:
        pytest.skip("MNV4_AXE does not name axe-core's axe.min.js")
    page.set_input_files("#files", files[:2])
    rows(page, 2)
    assert browsers.accessibility_faults(page, axe) == []
