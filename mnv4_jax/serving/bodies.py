"""The pictures in a request's body: read into memory, within limits of size, number and time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import HTTPException, Request
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

MOST_BYTES = 32 * 2**20  # of one request
MOST_HELD = 256 * 2**20  # bytes, of all requests being read or answered
MOST_FILES = 64
MOST_SECONDS = 60  # for the body of one request


class Busy(Exception):
    """A limit is reached for now; the message says which."""


class Bodies:
    """Counts the bytes of all bodies in memory."""

    def __init__(self):
        self._held = 0

    @contextlib.asynccontextmanager
    async def files(self, request: Request) -> AsyncIterator[list[tuple[str, bytes]]]:
        """(name, content) of the pictures in a body; counted as held until the end of the block.

        Raises:
          HTTPException: too many bytes, files or seconds, or no file.
          Busy: `MOST_HELD` bytes are held already.
        """
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > MOST_BYTES:
            raise HTTPException(413, f"more than {MOST_BYTES:,} bytes")
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    async for chunk in request.stream():
                        self._held += len(chunk)
                        body += chunk
                        if len(body) > MOST_BYTES:
                            raise HTTPException(413, f"more than {MOST_BYTES:,} bytes")
                        if self._held > MOST_HELD:
                            raise Busy(f"{MOST_HELD:,} bytes of pictures wait already")
            except TimeoutError:
                message = f"the body took more than {MOST_SECONDS} s"
                raise HTTPException(408, message) from None
            except ClientDisconnect:  # nobody reads this answer; unhandled it would be logged
                raise HTTPException(400, "the body was broken off") from None
            yield await _pictures(request, bytes(body))
        finally:
            self._held -= len(body)


async def _pictures(request: Request, body: bytes) -> list[tuple[str, bytes]]:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        if not body:
            raise HTTPException(422, "an empty body; expected a picture, or multipart/form-data")
        return [("picture", body)]

    async def again() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(request.headers, again(), max_files=MOST_FILES, max_fields=8)
    parser.spool_max_size = MOST_BYTES  # nothing is written to disk
    try:
        form = await parser.parse()
    except UnicodeError:
        raise HTTPException(422, "not a form: names that its charset does not decode") from None
    except (MultiPartException, KeyError) as error:
        text = getattr(error, "message", "no boundary")
        raise HTTPException(422, f"not a form of at most {MOST_FILES} files: {text}") from None
    files = [
        # A charset like unicode_escape decodes to lone surrogates, which no answer can contain.
        ((upload.filename or "picture").encode(errors="replace").decode(), await upload.read())
        for _, upload in form.multi_items()
        if not isinstance(upload, str)
    ]
    if not files:
        raise HTTPException(422, "no file in the form")
    return files
