"""A server of the public API that generates nothing: it only sends frames, each stamped with the time of sending.

``python -m tgis_cli.bench.null_server --interval-ms 10`` prints its port and serves until it is ended. All streams get
a frame at the same moment, as from one step of a real server. Words are its tokens. It is written at the level of
HTTP/2 frames, because a gRPC server in Python would be slower than the client that it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from time import monotonic, monotonic_ns
from typing import cast

from tgis_cli.bench.exact_loop import make_exact_loop
from tgis_cli.bench.http2.client import UNIMPLEMENTED
from tgis_cli.bench.http2.connection import Connection, Header, Stream
from tgis_cli.bench.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NO_TABLE,
    PREFACE,
    encode_headers,
    make_frame,
    make_message,
    pack_head,
)
from tgis_cli.bench.load.calls import SERVICE
from tgis_server.child import kill_with_parent
from tgis_server.errors import GroupFailed
from tgis_server.host.interpreter import make_command, make_environment
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.parameter_ranges import DEFAULT_MAX_NEW_TOKENS

MAX_LENGTH = 1 << 20
STAMP_BYTES = 9  # of 7 bits: enough for 292 years of nanoseconds

# Of a GenerationResponse, as protobuf writes them
MAX_TOKENS = b"\x38\x01"  # the stop reason
TEXT = b"\x22\x05 word"
SEED = b"\x50"  # followed by the stamp

HEAD = (":status", "200"), ("content-type", "application/grpc")
ANSWER_HEAD = encode_headers(*HEAD)
OK_TAIL = encode_headers(("grpc-status", "0"))


def make_varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def make_stamp(nanoseconds: int) -> bytes:
    """As a varint of fixed length, so that all but the stamp of a frame can be made before its moment."""
    parts = [nanoseconds >> 7 * place & 0x7F | 0x80 for place in range(STAMP_BYTES)]
    parts[-1] &= 0x7F
    return bytes(parts)


class Answer(Stream):
    """A call, as the server sees it."""

    __slots__ = ("input_tokens", "method", "num_sent", "num_tokens", "raw", "reply")

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        self.raw = b""  # the request
        self.input_tokens = 0
        self.num_tokens = 0  # to generate
        self.num_sent = 0
        self.reply: bytes | None = None  # of a unary call: what is sent when its tokens are "generated"

    def on_message(self, message: bytes, at: float) -> None:
        self.raw = message


class Steps:
    """The moments at which frames are sent, the same for all connections."""

    def __init__(self, interval_s: float, burst: int) -> None:
        """
        Args:
            interval_s: 0: as fast as the clients read.
            burst: tokens in each frame.
        """
        self.burst = burst
        self._interval_s = interval_s
        self._connections: set[ServerConnection] = set()
        self._timer: asyncio.Handle | None = None
        self._due = 0.0

    def add(self, connection: ServerConnection) -> None:
        """Let the connection send something in each step."""
        self._connections.add(connection)
        if self._timer is None:
            self._due = monotonic()
            self._schedule()

    def discard(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = max(self._due + self._interval_s, monotonic())
        self._timer = loop.call_at(self._due, self._step) if self._interval_s else loop.call_soon(self._step)

    def _step(self) -> None:
        self._timer = None
        for connection in list(self._connections):
            connection.step()
        if self._connections:
            self._schedule()


class ServerConnection(Connection):
    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps
        self._preface = PREFACE  # as far as it is still to come
        self._no_table = NO_TABLE  # before the first header block
        self._streamed: dict[int, Answer] = {}
        self._unary: dict[int, Answer] = {}
        self._pieces = [b""]  # of the next step, with stamps between them
        self._is_paused = False

    def data_received(self, data: bytes) -> None:
        if self._preface:
            size = min(len(data), len(self._preface))
            if data[:size] != self._preface[:size]:
                self.close()
                return
            self._preface, data = self._preface[size:], data[size:]
        super().data_received(data)

    def pause_writing(self) -> None:
        self._is_paused = True
        self._steps.discard(self)

    def resume_writing(self) -> None:
        self._is_paused = False
        self._join_steps()

    def connection_lost(self, error: Exception | None) -> None:
        self._steps.discard(self)

    # Events

    def on_headers(self, stream_id: int, headers: list[Header], *, is_last: bool, at: float) -> None:
        path = dict(headers).get(b":path", b"").decode("ascii", "replace")
        answer = Answer(path.removeprefix(SERVICE))
        self.add(answer, stream_id)
        if is_last:
            self.on_data_end(answer, at)

    def on_data_end(self, stream: Stream, at: float) -> None:
        answer = cast(Answer, stream)
        begin = METHODS.get(answer.method)
        if begin is None:
            self._fail(answer, UNIMPLEMENTED, "the null server does not have this method")
            return
        begin(answer)
        if answer.num_tokens == 0 and answer.reply is not None:
            self._reply(answer)
            return
        if answer.reply is None:
            self.write(self._make_head(answer, ANSWER_HEAD))
            self._streamed[answer.id] = answer
            self._prepare(answer)
        else:
            self._unary[answer.id] = answer
        self._join_steps()

    def on_reset(self, stream: Stream, code: int, at: float) -> None:
        self._streamed.pop(stream.id, None)
        self._unary.pop(stream.id, None)

    def on_bad_message(self, stream: Stream, reason: str, at: float) -> None:
        pass  # it is reset, and nothing has begun

    def on_goaway(self, last_id: int, code: int, text: str, at: float) -> None:
        pass  # the client closes the connection when it likes

    # Answers

    def step(self) -> None:
        """Send each stream its next frame. Nearly all of it is made before this moment, and the next one after it."""
        if len(self._pieces) > 1:
            self.write(make_stamp(monotonic_ns()).join(self._pieces))
        self._pieces = [b""]
        for answer in list(self._unary.values()):
            answer.num_sent += self._steps.burst
            if answer.num_sent >= answer.num_tokens:
                del self._unary[answer.id]
                self._reply(answer)
        for answer in list(self._streamed.values()):
            self._prepare(answer)
        if len(self._pieces) == 1 and not self._unary and not self._streamed:
            self._steps.discard(self)

    def _prepare(self, answer: Answer) -> None:
        """Make the stream's frame of the next step, if the client's windows allow it."""
        num_sent = min(answer.num_sent + self._steps.burst, answer.num_tokens)
        is_last = num_sent == answer.num_tokens
        message = b"\x10" + make_varint(num_sent) + TEXT + (MAX_TOKENS if is_last else b"")
        size = 5 + len(message) + len(SEED) + STAMP_BYTES
        first = b"" if answer.num_sent else make_message(b"\x30" + make_varint(answer.input_tokens))
        if size + len(first) > min(self.send_window, answer.send_window):
            return
        self.send_window -= size + len(first)
        answer.send_window -= size + len(first)
        answer.num_sent = num_sent
        if first:
            self._pieces[-1] += make_frame(DATA, 0, answer.id, first)
        self._pieces[-1] += (
            pack_head(size >> 8, size & 0xFF, DATA, 0, answer.id) + b"\0" + (size - 5).to_bytes(4) + message + SEED
        )
        self._pieces.append(self._make_tail(answer, OK_TAIL) if is_last else b"")
        if is_last:
            del self._streamed[answer.id]
            self.forget(answer.id)

    def _reply(self, answer: Answer) -> None:
        assert answer.reply is not None, "only unary calls have a reply"
        head = self._make_head(answer, ANSWER_HEAD)
        self.send(answer, head, make_message(answer.reply), self._make_tail(answer, OK_TAIL))

    def _fail(self, answer: Answer, status: int, text: str) -> None:
        block = encode_headers(*HEAD, ("grpc-status", str(status)), ("grpc-message", text))
        self.write(self._make_tail(answer, block))
        self.forget(answer.id)

    def _make_head(self, answer: Answer, block: bytes) -> bytes:
        return make_frame(HEADERS, END_HEADERS, answer.id, self._with_table(block))

    def _make_tail(self, answer: Answer, block: bytes) -> bytes:
        return make_frame(HEADERS, END_HEADERS | END_STREAM, answer.id, self._with_table(block))

    def _with_table(self, block: bytes) -> bytes:
        no_table, self._no_table = self._no_table, b""
        return no_table + block

    def _join_steps(self) -> None:
        if (self._streamed or self._unary or len(self._pieces) > 1) and not self._is_paused:
            self._steps.add(self)


def count_tokens(text: str, truncate: int) -> int:
    num_words = len(text.split())
    return min(num_words, truncate) if truncate else num_words


def begin_stream(answer: Answer) -> None:
    request = pb.SingleGenerationRequest.FromString(answer.raw)
    answer.input_tokens = count_tokens(request.request.text, request.params.truncate_input_tokens)
    answer.num_tokens = request.params.stopping.max_new_tokens or DEFAULT_MAX_NEW_TOKENS


def begin_batch(answer: Answer) -> None:
    request = pb.BatchedGenerationRequest.FromString(answer.raw)
    answer.num_tokens = request.params.stopping.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    responses = [
        pb.GenerationResponse(
            input_token_count=count_tokens(each.text, request.params.truncate_input_tokens),
            generated_token_count=answer.num_tokens,
            text=" word" * answer.num_tokens,
            stop_reason=pb.MAX_TOKENS,
        )
        for each in request.requests
    ]
    answer.reply = pb.BatchedGenerationResponse(responses=responses).SerializeToString()


def tokenize(answer: Answer) -> None:
    request = pb.BatchedTokenizeRequest.FromString(answer.raw)
    responses = []
    for each in request.requests:
        words = list(re.finditer(r"\S+", each.text))[-request.truncate_input_tokens :]
        response = pb.TokenizeResponse(token_count=len(words))
        if request.return_tokens:
            response.tokens.extend(word[0] for word in words)
        if request.return_offsets:
            sizes = [(len(each.text[: word.start()].encode()), len(word[0].encode())) for word in words]
            response.offsets.extend(pb.TokenizeResponse.Offset(start=a, end=a + size) for a, size in sizes)
        responses.append(response)
    answer.reply = pb.BatchedTokenizeResponse(responses=responses).SerializeToString()


def model_info(answer: Answer) -> None:
    info = pb.ModelInfoResponse(max_sequence_length=MAX_LENGTH, max_new_tokens=MAX_LENGTH // 2)
    answer.reply = info.SerializeToString()


METHODS: dict[str, Callable[[Answer], None]] = {
    "GenerateStream": begin_stream,
    "Generate": begin_batch,
    "Tokenize": tokenize,
    "ModelInfo": model_info,
}


async def serve(port: int, interval_s: float, burst: int) -> None:
    """Print the port, and serve until cancelled."""
    steps = Steps(interval_s, burst)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ServerConnection(steps), "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def run_null_server(interval_s: float, burst: int = 1) -> Iterator[int]:
    """A null server in a process of its own, which ends with the block or with this process. Yields its port."""
    command = make_command("-m", "tgis_cli.bench.null_server", "--parent", str(os.getpid()))
    process = subprocess.Popen(
        (*command, "--interval-ms", str(interval_s * 1000), "--burst", str(burst)),
        env=make_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None, "its output is a pipe"
            line = process.stdout.readline()
            if not line:
                raise GroupFailed("The null server did not start.")
            yield int(line)
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0: any free one, which is printed")
    parser.add_argument("--interval-ms", type=float, default=10.0, help="between frames; 0: as fast as clients read")
    parser.add_argument("--burst", type=int, default=1, help="tokens in each frame")
    parser.add_argument("--parent", type=int, help="process id with which to end")
    options = parser.parse_args()
    if options.parent:
        kill_with_parent(options.parent)
    gc.freeze()
    gc.disable()  # nothing here has cycles
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=make_exact_loop) as runner,
    ):
        runner.run(serve(options.port, options.interval_ms / 1000, options.burst))


if __name__ == "__main__":
    main()
