"""Limits how long writes to the client of a gRPC call take, and ends calls from the server's side."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Self

import grpc
from grpc._cython import cygrpc
from grpc.aio import ServicerContext

from tgis_server.frontend.transport.patience import Patience, Wait

MAX_STATUS_BYTES = 500


def end_call(context: ServicerContext, status: str, text: str) -> None:
    """Cancel a call with a status (given by name) and a text. This frees its buffers at once and cancels its handler.

    A status sent the usual way would wait forever behind a message that the client does not read. The C library can
    cancel a call, but grpc.aio does not expose that: of its functions, only the one for the peer's identities passes
    the call object on. That function is replaced for a moment: nothing else here uses it, and the event loop does
    nothing else meanwhile.
    """
    code = getattr(cygrpc.StatusCode, status.lower())
    ask = cygrpc.peer_identities
    cygrpc.peer_identities = lambda call: call.cancel(code, text[:MAX_STATUS_BYTES])
    try:
        context.peer_identities()
    finally:
        cygrpc.peer_identities = ask


class Writer:
    """Limits how long each write to the client of a call may take; the caller does the writing::

        with writer.writing(len(raw)):
            await context.write(raw)

    It is created once per call and entered for every frame; entering it takes a microsecond.
    """

    __slots__ = ("_deadline", "_num_bytes", "_patience", "_wait")

    def __init__(self, context: ServicerContext, patience: Patience, deadline: float | None = None) -> None:
        self._patience, self._deadline = patience, deadline
        self._wait = Wait(partial(end_call, context))
        self._num_bytes = 0

    def writing(self, num_bytes: int = 0) -> Self:
        self._num_bytes = num_bytes
        return self

    def begin(self, num_bytes: int) -> None:
        """Time a write without a ``with`` block, until :meth:`end`."""
        self._patience.begin_sending(self._wait, num_bytes, self._deadline)

    def end(self) -> None:
        self._patience.end_sending(self._wait)

    def __enter__(self) -> None:
        self.begin(self._num_bytes)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """
        Raises:
            CancelledError: the write failed, because the client has left or was too slow.
        """
        self.end()
        if isinstance(error, grpc.aio.InternalError):
            raise asyncio.CancelledError from None

    def bound_final_write(self, context: ServicerContext) -> None:
        """Limit how long the library's writes may take after the handler has returned."""
        self._patience.begin_sending(self._wait, 0)
        context.add_done_callback(lambda _: self._patience.end_sending(self._wait))


def bound_answer(context: ServicerContext, patience: Patience, num_bytes: int, *, is_held: bool) -> None:
    """Limit how long a unary answer may take; the library writes it after the handler has returned."""
    if not is_held:
        Writer(context, patience).bound_final_write(context)
        return
    stop = patience.hold_answer(partial(end_call, context), num_bytes)
    context.add_done_callback(lambda _: stop())
