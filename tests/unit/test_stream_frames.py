"""The frames of a stream while its engine goes on: whatever happens during a write, one frame ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from test_output import output_of
from tgis_server.frontend.generation import Call
from tgis_server.frontend.output import Output
from tgis_server.frontend.service import write_frames
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import FinishReason, Wanted

T = TypeVar("T")


class Threads:
    """In place of the tokenizer's: work is done beside the event loop, which goes on."""

    async def run(self, work: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        return work()


def tokens_of(output: Output, number: int) -> Callable[[], None]:
    """An engine of a few tokens; each call is a step."""
    steps = iter(range(number))

    def step() -> None:
        if (index := next(steps, None)) is not None:
            output.on_token(
                index + 1, FinishReason.MAX_TOKENS if index == number - 1 else FinishReason.NOT_FINISHED, None, 1.0
            )

    return step


@given(st.integers(1, 5), st.lists(st.integers(0, 5), min_size=12, max_size=12), st.booleans())
def test_exactly_one_frame_has_a_stop_reason_and_it_is_the_last(number: int, pauses: list[int], wants_input: bool):
    """``pauses``: how many steps happen during each write."""
    frames: list[pb.GenerationResponse] = []
    during = iter(pauses)

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

        async def go_on() -> None:
            while not output.is_finished:
                await asyncio.sleep(0.001)
                step()

        await asyncio.gather(write_frames(write, call, output, Threads()), go_on())

    asyncio.run(asyncio.wait_for(stream(), 5))
    assert [frame.stop_reason for frame in frames[:-1]] == [pb.NOT_FINISHED] * (len(frames) - 1)
    assert frames[-1].stop_reason == pb.MAX_TOKENS
    assert "".join(frame.text for frame in frames) == "".join(f" t{index + 1}" for index in range(number))
    assert sum(frame.input_token_count == 2 for frame in frames) >= 1
