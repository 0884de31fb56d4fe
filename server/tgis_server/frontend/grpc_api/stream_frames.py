"""Writes a stream's frames: the first one at once, the others as they become due, the one with the stop reason last."""

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

Write: TypeAlias = Callable[[bytes], Coroutine[Any, Any, None]]  # the library's; one call at a time


async def write_frames(write: Write, writer: Writer, call: Call, output: Output, tokenizer: Tokenizer) -> None:
    """Write an output's frames until it has ended; the caller checks whether it failed.

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
    """Writes the parts of an output one after another.

    This is not done in a task: for a task that waits for news, writes and waits again, asyncio would spend as much time
    per token as all the code here takes. Instead, callbacks resume the library's coroutine when the future that it
    awaits is done.
    """

    def __init__(self, write: Write, writer: Writer, output: Output) -> None:
        self._write, self._writer, self._output = write, writer, output
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # shared by all callbacks: otherwise each would get a copy
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._writing: Coroutine[Any, Any, None] | None = None
        self._waits_for: asyncio.Future[Any] | None = None  # the future that _writing awaits
        self._is_busy = False  # writing, or about to check what is due

    async def run(self, call: Call) -> None:
        wake, call.wake = call.wake, self._wake
        self._wake()
        try:
            await self._done
        finally:
            call.wake = wake  # else a reference cycle would keep the call's buffers in the library
            self._abandon()

    def _wake(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            # Later: the reader of all requests has other outputs to serve first.
            self._loop.call_soon(self._continue, context=self._context)

    def _continue(self, _: object = None) -> None:
        """Write what is due until the library has to wait."""
        if self._done.done():
            return  # the call has ended
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
        except (grpc.aio.InternalError, asyncio.CancelledError):  # the write failed
            self._done.cancel()
        except Exception as error:  # noqa: BLE001  in a callback, nothing would catch it: the handler gets it
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
        if future is None:  # the coroutine only yields to other tasks
            self._loop.call_soon(self._continue, context=self._context)
        else:
            future.add_done_callback(self._continue, context=self._context)

    def _abandon(self) -> None:
        """The handler is ending: leave any write in progress to the library."""
        if self._writing:
            if self._waits_for:
                self._waits_for.cancel()  # else asyncio would log a failure as never retrieved
            self._writing.close()
            self._writer.end()


def render_frame(part: Part) -> bytes:
    """Serialize a part here rather than in the library: its size is needed."""
    raw: bytes = render_part(part).SerializeToString()
    return raw
