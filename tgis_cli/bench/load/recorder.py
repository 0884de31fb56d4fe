"""Records what happens to each call of a level. It runs for every streamed message, so it is short."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import repeat
from math import nan

from google.protobuf.message import DecodeError

from tgis_cli.bench.http2.client import INTERNAL, OK, ClientStream
from tgis_cli.bench.load.calls import Call
from tgis_cli.bench.load.columns import CUT, Columns, doubles, floats
from tgis_server.wire import generation_pb2 as pb

AT_ONCE_S = 0.01  # a failure so soon after the sending is a refusal
MAX_SAMPLES = 200  # of each latency, for the live line

read_frame = pb.GenerationResponse.FromString
read_batch = pb.BatchedGenerationResponse.FromString


class RecordedCall(ClientStream):
    """A call in flight. Times are of the monotonic clock."""

    __slots__ = (
        "asked_input",
        "asked_output",
        "broken",
        "due",
        "first",
        "gaps",
        "index",
        "input_tokens",
        "last",
        "output_tokens",
        "recorder",
        "sent",
    )

    def __init__(self, block: bytes, call: Call, index: int, recorder: Recorder) -> None:
        super().__init__(block, call.body)
        self.recorder = recorder
        self.index = index
        self.asked_input, self.asked_output = call.input_tokens, call.output_tokens
        self.due = self.sent = self.first = nan
        self.last = nan  # when the latest token arrived
        self.input_tokens = self.output_tokens = 0
        self.gaps = floats()
        self.broken = ""  # why the answer cannot be read

    def on_sent(self, at: float) -> None:
        self.sent = at
        self.recorder.num_sent += 1

    def on_end(self, status: int, text: str, at: float) -> None:
        if self.broken and status == OK:
            status, text = INTERNAL, self.broken
        self.recorder.end(self, status, text, at)


class StreamedCall(RecordedCall):
    __slots__ = ()

    def on_message(self, message: bytes, at: float) -> None:
        try:
            frame = read_frame(message)
        except DecodeError:
            self.broken = "a message of the answer cannot be read"
            return
        count = frame.generated_token_count
        num_new = count - self.output_tokens
        if num_new > 0:
            if self.output_tokens:
                self.gaps.append(at - self.last)
            else:
                self.first = at
                self.recorder.first_tokens.append(at - self.sent)
            if num_new > 1:
                self.gaps.extend(repeat(0.0, num_new - 1))
            self.last = at
            self.output_tokens = count
            self.recorder.num_tokens += num_new
        if not self.input_tokens:  # only one of the first messages has it
            self.input_tokens = frame.input_token_count


class StampedCall(StreamedCall):
    """A call to the null server, whose frames carry the time at which they were sent."""

    __slots__ = ()

    def on_message(self, message: bytes, at: float) -> None:
        if stamp := read_frame(message).seed:
            self.recorder.stamp_delay_s.append(at - stamp / 1e9)
        super().on_message(message, at)


class UnaryCall(RecordedCall):
    __slots__ = ("num_messages",)

    def __init__(self, block: bytes, call: Call, index: int, recorder: Recorder) -> None:
        super().__init__(block, call, index, recorder)
        self.num_messages = 0

    def on_message(self, message: bytes, at: float) -> None:
        self.num_messages += 1
        try:
            responses = read_batch(message).responses
        except DecodeError:
            self.broken = "the answer cannot be read"
            return
        self.input_tokens = sum(each.input_token_count for each in responses)
        self.output_tokens = sum(each.generated_token_count for each in responses)
        self.recorder.num_tokens += self.output_tokens

    def on_end(self, status: int, text: str, at: float) -> None:
        if status == OK and self.num_messages != 1:
            status, text = INTERNAL, f"the server sent {self.num_messages} answers"
        super().on_end(status, text, at)


class Recorder:
    """Records one level in one worker."""

    def __init__(self, on_end: Callable[[float, bool], None]) -> None:
        """
        Args:
            on_end: called when a call is recorded, with the time at which it ended and whether it was refused at once.
        """
        self.columns = Columns()
        self.stamp_delay_s = doubles()
        self.in_flight: dict[int, RecordedCall] = {}  # by index; also those that wait to be sent
        self.num_sent = self.num_tokens = self.num_completed = self.num_failed = 0
        self.num_dropped = 0  # due, but never sent
        self.first_tokens: array[float] = floats()  # seconds from the sending, since the last samples
        self._on_end = on_end

    def begin(self, call: RecordedCall, due: float) -> None:
        call.due = due
        self.in_flight[call.index] = call

    def drop(self, call: RecordedCall) -> None:
        del self.in_flight[call.index]
        self.num_dropped += 1

    def end(self, call: RecordedCall, status: int, text: str, at: float) -> None:
        del self.in_flight[call.index]
        columns = self.columns
        columns.index.append(call.index)
        columns.due_s.append(call.due)
        columns.sent_s.append(call.sent)
        columns.first_s.append(call.first)
        columns.end_s.append(at)
        columns.status.append(status)
        columns.input_tokens.append(call.input_tokens)
        columns.output_tokens.append(call.output_tokens)
        columns.asked_input.append(call.asked_input)
        columns.asked_output.append(call.asked_output)
        columns.gap_s.extend(call.gaps)
        columns.num_gaps.append(len(call.gaps))
        if status == OK:
            self.num_completed += 1
        elif status != CUT:
            self.num_failed += 1
            columns.texts.setdefault(status, text)
        self._on_end(at, status not in (OK, CUT) and at - call.sent < AT_ONCE_S)

    def find_oldest(self, now: float) -> float:
        """For how many seconds the oldest call has been in flight, or has waited; 0 without one."""
        oldest = next(iter(self.in_flight.values()), None)
        return max(0.0, now - oldest.due) if oldest is not None else 0.0

    def take_samples(self) -> tuple[array[float], array[float]]:
        """The latest times to first token since this was last asked, and the latest gaps; not all if there are many."""
        first, self.first_tokens = self.first_tokens[-MAX_SAMPLES:], floats()
        gaps = floats()
        for call in self.in_flight.values():
            if call.gaps:
                gaps.append(call.gaps[-1])
                if len(gaps) == MAX_SAMPLES:
                    break
        return first, gaps
