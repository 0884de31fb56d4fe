"""The frames of a stream while its engine keeps running: whatever happens during a write, one frame ends the stream."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from test_output import output_of
from test_patience import make_patience
from tgis_server.frontend.generation import Call
from tgis_server.frontend.grpc_api.end_call import Writer
from tgis_server.frontend.grpc_api.stream_frames import write_frames
from tgis_server.frontend.output import Output
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import FinishReason, Wanted

T = TypeVar("T")


class Threads:
    """Stands in for the tokenizer: its work leaves the event loop free."""

    async def run(self, work: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        return work()


def tokens_of(output: Output, number: int) -> Callable[[], None]:
    """An engine with a few tokens; each call is a step."""
    steps = iter(range(number))

    def step() -> None:
        if (index := next(steps, None)) is not None:
            output.on_token(
                index + 1, FinishReason.MAX_TOKENS if index == number - 1 else FinishReason.NOT_FINISHED, None, 1.0
            )

    return step


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(0, 5), min_size=12, max_size=12), st.booleans())
def test_exactly_one_frame_has_a_stop_reason_and_it_is_the_last(number: int, pauses: list[int], wants_input: bool):
    """``pauses``: the number of steps during each write."""
    frames: list[pb.GenerationResponse] = []
    during = iter(pauses)
    patience = make_patience()

    async def stream() -> None:
        call = Call("stream", 1)
        output = output_of(wanted=Wanted(input_tokens=wants_input))
        output._on_change = call.on_change
        step = tokens_of(output, number)

        async def write(raw: bytes) -> None:
            frames.append(pb.GenerationResponse.FromString(raw))
            for _ in range(next(during, 1)):
                step()
                await asyncio.sleep(0)

        async def run_steps() -> None:
            while not output.is_finished:
                await asyncio.sleep(0.001)
                step()

        await asyncio.gather(write_frames(write, Writer(None, patience), call, output, Threads()), run_steps())

    asyncio.run(asyncio.wait_for(stream(), 5))
    assert [frame.stop_reason for frame in frames[:-1]] == [pb.NOT_FINISHED] * (len(frames) - 1)
    assert frames[-1].stop_reason == pb.MAX_TOKENS
    assert "".join(frame.text for frame in frames) == "".join(f" t{index + 1}" for index in range(number))
    assert sum(frame.input_token_count == 2 for frame in frames) == 1 + wants_input
    assert not patience._sending


class Library:
    """Takes frames like the gRPC library: each write waits for a future that the test completes."""

    def __init__(self) -> None:
        self.frames: list[pb.GenerationResponse] = []
        self.under_way: list[asyncio.Future[None]] = []

    async def write(self, raw: bytes) -> None:
        self.frames.append(pb.GenerationResponse.FromString(raw))
        self.under_way.append(asyncio.get_running_loop().create_future())
        await self.under_way[-1]

    async def take(self) -> None:
        """Complete the current write, and let everything proceed."""
        self.under_way[-1].set_result(None)
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def with_stream(test: Callable[[Library, Output, asyncio.Task[None]], Awaitable[None]], **wanted: bool) -> None:
    """Run a test with a handler that has written its first frame."""

    async def run() -> None:
        library, patience, call = Library(), make_patience(), Call("stream", 1)
        output = output_of(wanted=Wanted(**wanted))
        output._on_change = call.on_change
        writing = write_frames(library.write, Writer(None, patience), call, output, Threads())
        handler = asyncio.create_task(writing)
        await settle()
        await library.take()
        await test(library, output, handler)
        assert handler.done()
        assert not patience._sending

    asyncio.run(asyncio.wait_for(run(), 5))


def test_each_frame_waits_until_the_previous_one_is_written():
    async def check(library: Library, output: Output, handler: asyncio.Task[None]) -> None:
        for token in (1, 2, 3):
            output.on_token(token, FinishReason.NOT_FINISHED, None, 1.0)
        await settle()
        num_before = len(library.frames)
        for _ in range(2):
            await library.take()
        output.on_token(4, FinishReason.MAX_TOKENS, None, 1.0)
        await settle()
        num_while_the_third_is_written = len(library.frames)
        for _ in range(2):
            await library.take()

        assert (num_before, num_while_the_third_is_written) == (2, 4)
        assert [frame.text for frame in library.frames] == ["", " t1", " t2", " t3", " t4"]

    with_stream(check, generated_tokens=True)


def test_a_failed_write_ends_the_handler_as_if_its_client_had_left():
    async def check(library: Library, output: Output, handler: asyncio.Task[None]) -> None:
        output.on_token(1, FinishReason.NOT_FINISHED, None, 1.0)
        await settle()
        library.under_way[-1].set_exception(grpc.aio.InternalError("failed"))
        await settle()

        assert handler.cancelled()

    with_stream(check)


def test_a_cancelled_handler_leaves_its_write_to_the_library():
    async def check(library: Library, output: Output, handler: asyncio.Task[None]) -> None:
        output.on_token(1, FinishReason.NOT_FINISHED, None, 1.0)
        await settle()
        handler.cancel()
        await settle()
        output.on_token(2, FinishReason.MAX_TOKENS, None, 1.0)
        await settle()

        assert handler.cancelled()
        assert library.under_way[-1].cancelled()
        assert len(library.frames) == 2

    with_stream(check)


def test_a_finished_call_keeps_nothing_of_the_library():
    async def run() -> None:
        library, call, output = Library(), Call("stream", 1), output_of()
        output._on_change = call.on_change
        call.outputs.append(output)
        writing = write_frames(library.write, Writer(None, make_patience()), call, output, Threads())
        handler = asyncio.create_task(writing)
        await settle()
        await library.take()
        output.on_token(1, FinishReason.MAX_TOKENS, None, 1.0)
        await settle()
        await library.take()
        await handler

        kept = weakref.ref(library)
        del library, writing, handler
        gc.collect()

        assert kept() is None

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_write_cancelled_by_the_library_ends_the_handler():
    async def check(library: Library, output: Output, handler: asyncio.Task[None]) -> None:
        output.on_token(1, FinishReason.NOT_FINISHED, None, 1.0)
        await settle()
        library.under_way[-1].cancel()
        await settle()

        assert handler.cancelled()

    with_stream(check)


def test_an_unexpected_error_in_a_write_is_raised_in_the_handler():
    async def check(library: Library, output: Output, handler: asyncio.Task[None]) -> None:
        output.on_token(1, FinishReason.NOT_FINISHED, None, 1.0)
        await settle()
        library.under_way[-1].set_exception(ValueError("unforeseen"))
        await settle()

        assert str(handler.exception()) == "unforeseen"

    with_stream(check)
