"""Writes to the client of one gRPC call, with a bound, and ends such a call from the server's side."""

from __future__ import annotations

import asyncio
from functools import partial

import grpc
from grpc._cython import cygrpc

from tgis_server.frontend.patience import Patience

MAX_STATUS_BYTES = 500


def end_call(context: grpc.aio.ServicerContext, status: str, text: str) -> None:
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


class writing:  # noqa: N801  a context manager; a class costs a third of a generator, and every frame is written in one
    """Something is written to a client inside the ``with`` block.

    Raises:
        CancelledError: it cannot be written, as the client has left or was too slow.
    """

    __slots__ = ("_start", "_stop")

    def __init__(
        self, context: grpc.aio.ServicerContext, patience: Patience, num_bytes: int = 0, deadline: float | None = None
    ) -> None:
        self._start = partial(patience.start_sending, partial(end_call, context), num_bytes, deadline)

    def __enter__(self) -> None:
        self._stop = self._start()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop()
        if isinstance(error, grpc.aio.InternalError):
            raise asyncio.CancelledError from None


def watch_last_write(context: grpc.aio.ServicerContext, patience: Patience, num_bytes: int = 0) -> None:
    """What the library writes after the handler has returned has the same bound."""
    stop = patience.start_sending(partial(end_call, context), num_bytes)
    context.add_done_callback(lambda _: stop())
