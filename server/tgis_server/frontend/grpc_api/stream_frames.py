"""The frames of a stream: the first at once, the others as they become due, one with a stop reason last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, TypeAlias

import grpc

from tgis_server.frontend.generation import Call
from tgis_server.frontend.grpc_api.end_call import Writer
from tgis_server.frontend.grpc_api.messages import render_part
from tgis_server.frontend.output import Output, Part
from tgis_server.frontend.text import Tokenizer

Write: TypeAlias = Callable[[bytes], Coroutine[Any, Any, None]]  # of the library; one at a time


async def write_frames(write: Write, writer: Writer, call: Call, output: Output, tokenizer: Tokenizer) -> None:
    """Returns when the output has ended and all of it is written; whether it failed is up to the caller to look.

    Raises:
        CancelledError: the client has left or was too slow.
    """

    async def write_now(frame: bytes) -> None:
        with writer.writing(len(frame)):
            await write(frame)

    await write_now(render_frame(output.first_part()))
    if output.wants_input_part:
        while not (output.is_input_part_due or output.is_finished):
            await call.wait_for_news()
        if output.is_input_part_due:
            await write_now(await tokenizer.run(lambda: render_frame(output.input_part())))
    await _Stream(write, writer, output).run(call)


class _Stream:
    """Writes the parts of an output, each when the one before it is written.

    No task does this. For one that waits for news, writes and waits again, asyncio spends as much on every token as all
    code here. So the library's coroutine is resumed by the callback of the future that it waits for.
    """

    def __init__(self, write: Write, writer: Writer, output: Output) -> None:
        self._write, self._writer, self._output = write, writer, output
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # one for all callbacks: each would be given a copy of its own
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._writing: Coroutine[Any, Any, None] | None = None
        self._waits_for: asyncio.Future[Any] | None = None  # what _writing does
        self._is_busy = False  # writing, or about to look what is due

    async def run(self, call: Call) -> None:
        wake, call.wake = call.wake, self._wake
        self._wake()
        try:
            await self._done
        finally:
            call.wake = wake  # the two would keep each other, and the library's buffers of the call, until collected
            self._abandon()

    def _wake(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            # Not now: the reader of all requests has others to tell first.
            self._loop.call_soon(self._continue, context=self._context)

    def _continue(self, _: object = None) -> None:
        """Write what is due until the library has to be waited for."""
        if self._done.done():
            return  # the call is over
        try:
            while writing := self._writing or self._begin():
                try:
                    future = writing.send(None)
                except StopIteration:
                    self._writing = None
                    self._writer.end()
                else:
                    self._resume_after(future)
                    return
            self._is_busy = False
            if self._output.is_finished:  # and its last part is written
                self._done.set_result(None)
        except (grpc.aio.InternalError, asyncio.CancelledError):  # it could not be written
            self._done.cancel()
        except Exception as error:  # noqa: BLE001  a callback of the event loop: the handler raises it
            self._done.set_exception(error)

    def _begin(self) -> Coroutine[Any, Any, None] | None:
        if not (part := self._output.take_part()):
            return None
        frame = render_frame(part)
        self._writer.begin(len(frame))
        self._writing = self._write(frame)
        return self._writing

    def _resume_after(self, future: asyncio.Future[Any] | None) -> None:
        self._waits_for = future
        if future is None:  # it lets others go first
            self._loop.call_soon(self._continue, context=self._context)
        else:
            future.add_done_callback(self._continue, context=self._context)

    def _abandon(self) -> None:
        """The handler ends: what is being written is left to the library."""
        if self._writing:
            if self._waits_for:
                self._waits_for.cancel()  # else a failure would be logged as one that nobody looked at
            self._writing.close()
            self._writer.end()


def render_frame(part: Part) -> bytes:
    """Serialized here, as the size is wanted."""
    raw: bytes = render_part(part).SerializeToString()
    return raw
