"""A gRPC client of a running server. gRPC is imported on first use."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tgis_cli.clients.address import Address
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.no_connection import explain_no_connection
from tgis_cli.clients.tls_files import TlsFiles
from tgis_server.errors import RequestError, Unavailable, with_status

if TYPE_CHECKING:
    import grpc

    from tgis_server.wire import generation_pb2 as pb

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; all ``None`` = greedy."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        return (self.temperature, self.top_p, self.top_k, self.seed) == (None, None, None, None)


class Client:
    """One connection. Errors of server and connection become ``RequestError`` with a sentence."""

    def __init__(self, channel: Any, address: Address) -> None:
        from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

        self.address = address
        self._stub = GenerationServiceStub(channel)

    @classmethod
    @contextlib.contextmanager
    def connect(cls, connection: Connection) -> Iterator[Client]:
        """Connect to the server that the options, the environment or the running servers name.

        Raises:
            UsageError: the options cannot be used, or do not say which server.
            Unavailable: the server does not answer, or refuses the connection.
        """
        address = connection.find_address()
        files = connection.tls_files(address)
        with open_connected_channel(address, files, CONNECT_TIMEOUT_S) as channel:
            yield cls(channel, address)

    def generate_stream(self, request: pb.SingleGenerationRequest) -> Iterator[pb.GenerationResponse]:
        """Yield responses as they arrive; closing the iterator cancels the call."""
        with self._errors_in_words():
            call = self._stub.GenerateStream(request)
            try:
                yield from call
            finally:
                call.cancel()

    def tokenize(self, texts: list[str]) -> list[pb.TokenizeResponse]:
        """Pieces of each text, in order."""
        from tgis_server.wire import generation_pb2 as pb

        request = pb.BatchedTokenizeRequest(
            requests=[pb.TokenizeRequest(text=text) for text in texts], return_tokens=True
        )
        with self._errors_in_words():
            return list(self._stub.Tokenize(request).responses)

    @contextlib.contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise to_request_error(error.code().name, error.details() or "", self.address.target) from None


@contextlib.contextmanager
def open_connected_channel(address: Address, files: TlsFiles | None, timeout_s: float) -> Iterator[grpc.Channel]:
    """A gRPC channel that has a connection.

    Raises:
        UsageError: a TLS file cannot be used.
        Unavailable: there is no connection within the time; the sentence says why.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C library would log failed connections too
    import grpc

    from tgis_server.wire.grpc_channels import UNLIMITED, Option, open_channel

    options: tuple[Option, ...] = UNLIMITED
    credentials = None
    if files is not None:
        credentials = grpc.ssl_channel_credentials(*files.for_grpc())
        options += (("grpc.ssl_target_name_override", files.name),) if files.name else ()
    with open_channel(address.target, credentials, options) as channel:
        if not is_connected(channel, timeout_s):
            raise Unavailable(explain_no_connection(address, files, timeout_s))
        yield channel


def is_connected(channel: grpc.Channel, timeout_s: float) -> bool:
    """Wait until the connection is up or refused; give up after the timeout."""
    import grpc

    settled: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def note(state: grpc.ChannelConnectivity) -> None:
        if state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
            settled.put(state is grpc.ChannelConnectivity.READY)

    channel.subscribe(note, try_to_connect=True)
    with contextlib.suppress(queue.Empty):
        return settled.get(timeout=timeout_s)
    return False


def to_request_error(status: str, details: str, url: str) -> RequestError:
    """Turn a gRPC status into an error with a message for people."""
    if status == "UNAVAILABLE":
        return Unavailable(f"The server at {url} is unavailable: {details or 'the connection broke'}")
    return with_status(status, f"{details or 'the server gave no reason'} ({status})")


def build_request(text: str, max_new_tokens: int, sampling: Sampling, stop: list[str]) -> pb.SingleGenerationRequest:
    """A request for one completion; 0 new tokens = the server's default."""
    from tgis_server.wire import generation_pb2 as pb

    given = {
        name: value
        for name in ("temperature", "top_p", "top_k", "seed")
        if (value := getattr(sampling, name)) is not None
    }
    return pb.SingleGenerationRequest(
        request=pb.GenerationRequest(text=text),
        params=pb.Parameters(
            method=pb.GREEDY if sampling.is_greedy else pb.SAMPLE,
            sampling=pb.SamplingParameters(**given),
            stopping=pb.StoppingCriteria(max_new_tokens=max_new_tokens, stop_sequences=stop),
        ),
    )
