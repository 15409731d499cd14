"""Times the static page in Chromium: opening to ready, first answer, and pictures per second:

    python -m benchmarks.web [--site=FOLDER] [--rounds=5] [--pictures=64]
    python -m benchmarks.web --data=FOLDER     # what float16 storage costs on its Validation split

Without --site the page is built first. Each round is a new browser with an empty cache; pictures
are drawn portraits of 128 px. The server on loopback is that of the standard library.
"""

import argparse
import functools
import http.server
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from playwright.sync_api import expect, sync_playwright

from input_pipeline import demo


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", help="what `convert --to=web` wrote")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--data", help="a data folder")
    args = parser.parse_args()
    if args.data:
        print_accuracy_lost(args.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        site = args.site or f"{folder}/site"
        if not args.site:
            command = [sys.executable, "-m", "mnv4_jax.convert", "--to=web", f"--out={site}"]
            subprocess.run(command, check=True)
        files = []
        for i in range(args.pictures):
            file = pathlib.Path(folder) / f"{i}.jpg"
            file.write_bytes(demo.draw_jpeg(7, i)[0])
            files.append(str(file))
        handler = functools.partial(_Quiet, directory=site)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        rounds = [one_round(args.chromium, address, files) for _ in range(args.rounds)]
        server.shutdown()
    print("| | median | all rounds |\n| --- | --- | --- |")
    for name, values in zip(
        ("opening to ready, s", "to the first answer, s", "pictures a second afterwards"),
        zip(*rounds, strict=True),
        strict=True,
    ):
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {statistics.median(values):.2f} | {each} |")


def print_accuracy_lost(data: str) -> None:
    from mnv4_jax.convert import to_torch
    from mnv4_jax.detector.detector import Detector
    from mnv4_jax.export import onnx, web

    detector = Detector()
    whole = onnx.export(to_torch(detector))
    onnx.print_accuracy_lost(whole, web.pack(whole), detector, data, form="packed")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def one_round(chromium: str, address: str, files: list[str]) -> tuple[float, float, float]:
    """(s to ready, s to the first answer, pictures a second of the rest)."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        ready = time.perf_counter() - start
        start = time.perf_counter()
        page.set_input_files("#files", files[0])
        page.wait_for_selector("#rows .answer", timeout=60_000)
        first = time.perf_counter() - start
        # Not timed: the service worker's copy for offline use, and the second worker.
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.set_input_files("#files", files[:4])
        expect(page.locator("#status")).to_have_text("4 done", timeout=60_000)
        page.click("#clear")
        start = time.perf_counter()
        page.set_input_files("#files", files)
        expect(page.locator("#status")).to_have_text(f"{len(files)} done", timeout=120_000)
        rate = len(files) / (time.perf_counter() - start)
        browser.close()
    return ready, first, rate


if __name__ == "__main__":
    main()
