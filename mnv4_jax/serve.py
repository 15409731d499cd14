"""Serves a detector: python -m mnv4_jax.serve [--checkpoint=DIR] [--port=8000]

Serves a page to drop pictures on, and an HTTP interface (/docs). Only this machine has access
unless --host says otherwise. Pictures stay in memory. Exit status: 130 Ctrl-C, 143 SIGTERM, 2
an error that the user can fix.
"""

import importlib.metadata
import socket
import sys

from input_pipeline import cli
from input_pipeline.cli import UserError
from mnv4_jax.detector.detector import Detector
from mnv4_jax.runtime import memory


def main() -> None:
    parser = cli.ArgumentParser(
        prog="python -m mnv4_jax.serve", description=__doc__.split("\n", 2)[2]
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="default: the detector in the box")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--name", action="append", default=[], help="a host name that the page is reached under"
    )
    args = parser.parse_args(sys.argv[1:])
    if not 0 <= args.port < 2**16:
        parser.error(f"--port={args.port}: must be from 0 to 65535")
    try:
        import uvicorn
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        from mnv4_jax.serving.app import Facts, make_app
        from mnv4_jax.serving.connections import closing_slow
    except ImportError as error:
        raise UserError(f"serve needs {error.name}: pip install -e '.[serve]'") from None

    listener = _listen(args.host, args.port)
    memory.keep_freed()
    detector = Detector(args.checkpoint)
    packages = ("mnv4_jax", "jax", "fastapi")
    facts = Facts(
        labels=detector.labels,
        thresholds=detector.thresholds,
        image_size_px=detector.config.data.image_size,
        faces=args.checkpoint is None,
        versions={name: importlib.metadata.version(name) for name in packages},
        card="docs/MODEL_CARD.md" if args.checkpoint is None else "",
    )
    host, port = listener.getsockname()[:2]
    names = ["127.0.0.1", "localhost", "[::1]", args.host, *args.name]
    app = make_app(detector, facts, names)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}/", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15,
        limit_concurrency=200, http=closing_slow(AutoHTTPProtocol, head_s=10),
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # a request may now follow the printed address; it waits
    except OSError as error:
        raise UserError(
            f"--host={host} --port={port}: {error.strerror}; name another, as --port=8001"
        ) from None
    return listener


if __name__ == "__main__":
    cli.run(main)
