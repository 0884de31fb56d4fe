"""Writes to the client of one gRPC call, with a bound, and ends such a call from the server's side."""

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
    """Cancel a call with a status (a name) and a text. Its buffers are freed at once and its handler is cancelled.

    A status that is sent in the usual way waits behind a message that the client does not read, for ever. The C library
    can cancel a call, but grpc.aio has no method for it: only its function that asks for the peer's identities gets
    hold of the call. For that moment it is replaced. It is asked for by nobody else here, and on the event loop alone.
    """
    code = getattr(cygrpc.StatusCode, status.lower())
    ask = cygrpc.peer_identities
    cygrpc.peer_identities = lambda call: call.cancel(code, text[:MAX_STATUS_BYTES])
    try:
        context.peer_identities()
    finally:
        cygrpc.peer_identities = ask


class Writer:
    """Writes to the client of one call, each time with a bound. What the library needs between is up to the caller::

        with writer.writing(len(raw)):
            await context.write(raw)

    Made once for a call and entered for every frame: it costs a microsecond.
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
        """The same without a ``with`` block, until :meth:`end`."""
        self._patience.begin_sending(self._wait, num_bytes, self._deadline)

    def end(self) -> None:
        self._patience.end_sending(self._wait)

    def __enter__(self) -> None:
        self.begin(self._num_bytes)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """
        Raises:
            CancelledError: it could not be written, as the client has left or was too slow.
        """
        self.end()
        if isinstance(error, grpc.aio.InternalError):
            raise asyncio.CancelledError from None

    def bound_final_write(self, context: ServicerContext) -> None:
        """What the library writes after the handler has returned has the same bound."""
        self._patience.begin_sending(self._wait, 0)
        context.add_done_callback(lambda _: self._patience.end_sending(self._wait))


def bound_answer(context: ServicerContext, patience: Patience, num_bytes: int, *, is_held: bool) -> None:
    """The library writes the one answer of a call after its handler has returned."""
    if not is_held:
        Writer(context, patience).bound_final_write(context)
        return
    stop = patience.hold_answer(partial(end_call, context), num_bytes)
    context.add_done_callback(lambda _: stop())
