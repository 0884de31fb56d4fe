"""A client of ``fmaas.GenerationService`` for tests: requests from flat keywords, answers as messages.

``api.generate("a", "b", max_new_tokens=3)`` is a call with two inputs; every keyword is a field of ``Parameters`` or of
one of the messages in it. Field names are unique among these, so nothing else needs to be said.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import grpc
import pytest

from contract_metrics import Samples, fetch
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

DEADLINE_S = 60.0
WAYS = ("unary", "stream", "batch")  # how one input can be answered; all must give the same answer
KINDS = ("unary", "stream")
PARTS = ("sampling", "stopping", "response", "decoding")

Frame = pb.GenerationResponse


def row(name: str) -> pytest.MarkDecorator:
    """Name a test by the row of the contract that it checks."""
    return pytest.mark.parametrize((), [pytest.param(id=name)])


def asked_of(*servers: str) -> pytest.MarkDecorator:
    """Run a test on these servers of contract_servers.py, whatever the module says in ``ASKED_OF``."""
    return pytest.mark.asked_of(*servers)


def parameters(**fields: Any) -> pb.Parameters:
    """Parameters from flat keywords. Sampling parameters imply the method SAMPLE unless ``method`` is given."""
    params = pb.Parameters()
    for name, value in fields.items():
        if name in ("method", "truncate_input_tokens"):
            setattr(params, name, value)
            continue
        [part] = [getattr(params, part) for part in PARTS if name in getattr(params, part).DESCRIPTOR.fields_by_name]
        if name == "length_penalty":
            part.length_penalty.start_index, part.length_penalty.decay_factor = value
        elif name == "choice":
            part.choice.choices.extend(value)
        elif name == "stop_sequences":
            part.stop_sequences.extend(value)
        else:
            setattr(part, name, value)
    if params.HasField("sampling") and "method" not in fields:
        params.method = pb.SAMPLE
    return params


def exactly(count: int) -> dict[str, int]:
    """Exactly this many new tokens, whatever the model would generate."""
    return {"max_new_tokens": count, "min_new_tokens": count}


def batch_request(texts: Iterable[str], **fields: Any) -> pb.BatchedGenerationRequest:
    ids = {name: fields.pop(name) for name in ("model_id", "prefix_id", "adapter_id") if name in fields}
    requests = [pb.GenerationRequest(text=text) for text in texts]
    return pb.BatchedGenerationRequest(requests=requests, params=parameters(**fields), **ids)


def single_request(text: str, **fields: Any) -> pb.SingleGenerationRequest:
    ids = {name: fields.pop(name) for name in ("model_id", "prefix_id", "adapter_id") if name in fields}
    return pb.SingleGenerationRequest(request=pb.GenerationRequest(text=text), params=parameters(**fields), **ids)


@dataclass(frozen=True)
class Refusal:
    """The status of a call that failed."""

    code: str
    text: str

    @classmethod
    def invalid(cls, text: str) -> Refusal:
        return cls("INVALID_ARGUMENT", text)


def refusal_of(call: Callable[[], Any]) -> Refusal:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return Refusal(raised.value.code().name, raised.value.details())


class Api:
    """One server under test. Calls share a channel and may be made from any thread."""

    def __init__(self, address: str, http: str | None) -> None:
        self.address = address
        self.http = http
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self.stub = GenerationServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    @cached_property
    def info(self) -> pb.ModelInfoResponse:
        return self.stub.ModelInfo(pb.ModelInfoRequest(), timeout=DEADLINE_S)

    # Generation

    def generate(self, *texts: str, **fields: Any) -> list[Frame]:
        """Make a unary call; return the answers to its inputs."""
        return list(self.stub.Generate(batch_request(texts, **fields), timeout=DEADLINE_S).responses)

    def open_stream(self, text: str, *, timeout: float = DEADLINE_S, **fields: Any) -> Any:
        """A streaming call whose frames have not been read."""
        return self.stub.GenerateStream(single_request(text, **fields), timeout=timeout)

    def stream(self, text: str, **fields: Any) -> list[Frame]:
        """All frames of a streaming call."""
        return list(self.open_stream(text, **fields))

    def answer(self, text: str, way: str = "unary", **fields: Any) -> Frame:
        """One input's whole answer: alone, from a stream, or from the middle of a batch."""
        match way:
            case "unary":
                return self.generate(text, **fields)[0]
            case "batch":
                return self.generate("One day", text, "Two plus three", **fields)[1]
            case _:
                return merged(self.stream(text, **fields))

    def refusal(self, *texts: str, kind: str = "unary", **fields: Any) -> Refusal:
        """The status of a generation call that must fail."""
        call = partial(self.generate, *texts, **fields) if kind == "unary" else partial(self.stream, *texts, **fields)
        return refusal_of(call)

    def assert_accepts(self, text: str, **fields: Any) -> None:
        """Check that validation passes: the first frame arrives. No more is generated than needed."""
        with self.running(text, **fields) as frames:
            assert next(frames).input_token_count > 0

    @contextlib.contextmanager
    def running(self, text: str, **fields: Any) -> Iterator[Iterator[Frame]]:
        """A stream that is cancelled when the ``with`` block is left."""
        call = self.open_stream(text, **fields)
        try:
            yield call
        finally:
            call.cancel()

    # Tokens

    def tokenize(self, *texts: str, **fields: Any) -> list[pb.TokenizeResponse]:
        requests = [pb.TokenizeRequest(text=text) for text in texts]
        request = pb.BatchedTokenizeRequest(requests=requests, **fields)
        return list(self.stub.Tokenize(request, timeout=DEADLINE_S).responses)

    def count_tokens(self, text: str) -> int:
        return self.tokenize(text)[0].token_count

    def text_of(self, num_tokens: int, word: str = " a") -> str:
        """A text of exactly this many tokens, including special ones."""
        text = word * num_tokens
        while (surplus := self.count_tokens(text) - num_tokens) > 0:
            text = text[: len(text) - max(1, surplus // 2)]
        while self.count_tokens(text) < num_tokens:
            text += word
        if self.count_tokens(text) != num_tokens:
            pytest.skip(f"no text of exactly {num_tokens} tokens was found for this tokenizer")
        return text

    # Metrics

    def metrics(self) -> Samples:
        if self.http is None:
            pytest.skip("metrics need --http")
        return fetch(self.http)

    def settled_metrics(self) -> Samples:
        """The metrics once they no longer change and nothing runs: calls cancelled by earlier tests have ended."""
        before = self.metrics().without_processes()
        deadline = time.monotonic() + DEADLINE_S
        while (after := (time.sleep(0.03), self.metrics().without_processes())[1]) != before or after.get(
            "tgi_batch_current_size"
        ):
            assert time.monotonic() < deadline, "the metrics keep changing: is somebody else using the server?"
            before = after
        return after

    def wait_for_metric(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has this value."""
        deadline = time.monotonic() + 5.0
        while (found := self.metrics().get(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
            time.sleep(0.02)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same time; return their results in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def merged(frames: list[Frame]) -> Frame:
    """The unary answer that the frames of a stream amount to."""
    first, last = frames[0], frames[-1]
    return Frame(
        input_token_count=first.input_token_count,
        generated_token_count=last.generated_token_count,
        text="".join(frame.text for frame in frames),
        stop_reason=last.stop_reason,
        stop_sequence=last.stop_sequence,
        seed=last.seed,
        tokens=[token for frame in frames for token in frame.tokens],
        input_tokens=[token for frame in frames for token in frame.input_tokens],
    )


def reason(answer: Frame) -> str:
    return pb.StopReason.Name(answer.stop_reason)


def pieces(answer: Frame) -> list[str]:
    """The generated tokens."""
    return [token.text for token in answer.tokens]


def without_nan(answer: Frame) -> Frame:
    """A copy that can be compared: NaN equals nothing, not even itself."""
    copy = Frame()
    copy.CopyFrom(answer)
    for token in copy.input_tokens:
        if math.isnan(token.logprob):
            token.logprob = -12345.0
    return copy
