"""Closes connections whose request does not arrive."""

import asyncio


def closing_slow(protocol: type, *, head_s: float) -> type:
    """uvicorn's HTTP `protocol`, but a connection has `head_s` seconds for the head of a request.

    uvicorn itself waits for ever: 200 connections that send nothing would shut out all others
    (`limit_concurrency`). Between requests its `timeout_keep_alive` counts until the first byte.
    """

    class ClosingSlow(protocol):
        _head_until: float | None = None  # None: while a request is answered, or none has begun

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)  # stops the timer
            if self.cycle is None or self.cycle.response_complete:
                self._await_head()
            else:
                self._head_until = None

        def _await_head(self) -> None:
            if self._head_until is None:  # more bytes of one head get no more time
                self._head_until = self.loop.time() + head_s
            # uvicorn's own timer, which it also stops when the connection is lost
            self.timeout_keep_alive_task = self.loop.call_at(
                self._head_until, self.timeout_keep_alive_handler
            )

    return ClosingSlow
