"""A real Chromium for tests: headless, quiet, and without a way to any host but this one."""

import contextlib
import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is missing")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


@contextlib.contextmanager
def chromium():
    """The browser; skips where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address: str, **options):
    """A page of `address` that, to the end, met no error and asked nobody else.

    Args:
      options: of the browser's context, as a viewport.
    """
    context = browser.new_context(**options)
    page = context.new_page()
    asked, wrong = [], []
    context.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    yield page
    context.close()
    assert wrong == []
    assert all(url.startswith((address, f"blob:{address[:16]}")) for url in asked), asked


def answers(page, n: int) -> list:
    """The table's rows, once there are `n`."""
    sync_api.expect(page.locator("#rows .answer")).to_have_count(n, timeout=120_000)
    return page.locator("#rows tr").all()


def drop(page, name: str, data: bytes) -> None:
    transfer = page.evaluate_handle(
        """([name, bytes]) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
        return data; }""",
        [name, list(data)],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def accessibility_faults(page, axe: str) -> list[tuple[str, str]]:
    """(rule, element) that the rules of axe-core, the file `axe`, find wrong."""
    with open(axe, encoding="utf-8") as file:
        page.evaluate(file.read())
    return [(v["id"], v["nodes"][0]["html"]) for v in page.evaluate("axe.run()")["violations"]]
