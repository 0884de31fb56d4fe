"""A gRPC client of a running server. gRPC is imported on first use."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tgis_cli.clients.address import Address
from tgis_cli.clients.answer import Answer
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.tls_files import TlsFiles
from tgis_server.errors import GenerationFailed, InvalidRequest, RequestError, Unavailable, with_status

if TYPE_CHECKING:
    import grpc

    from tgis_server.wire import generation_pb2 as pb

CONNECT_TIMEOUT_S = 5.0
POLL_S = 0.001
TOO_LARGE = re.compile(r"larger than max \((\d+) vs\. (\d+)\)")  # gRPC's words, in bytes
UNAVAILABLE = "is unavailable: "  # before the reason
BROKEN = re.compile("Stream removed|Socket closed|Connection reset")


class Client:
    """One connection. Errors of server and connection become ``RequestError`` with a sentence."""

    def __init__(self, channel: Any, address: Address) -> None:
        from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

        self.address = address
        self._stub = GenerationServiceStub(channel)
        self._model_info: pb.ModelInfoResponse | None = None

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
        with open_connected_channel(address, files, CONNECT_TIMEOUT_S, meanwhile=import_messages) as channel:
            yield cls(channel, address)

    def generate_stream(self, request: pb.SingleGenerationRequest) -> Iterator[pb.GenerationResponse]:
        """Yield responses as they arrive; closing the iterator cancels the call."""
        with self._errors_in_words():
            call = self._stub.GenerateStream(request)
            try:
                yield from call
            finally:
                call.cancel()

    def start_answer(
        self, request: pb.SingleGenerationRequest, on_done: Callable[[Answer | RequestError], None]
    ) -> Callable[[], None]:
        """Start a call that brings the whole answer at once, without waiting for it.

        Args:
            on_done: gets the answer or the error, from a thread of gRPC.

        Returns:
            What cancels the call.
        """
        import grpc

        from tgis_server.wire import generation_pb2 as pb

        answer = Answer()

        def take_result(call: Any) -> Answer | RequestError:
            try:
                responses = call.result().responses
            except (grpc.RpcError, grpc.FutureCancelledError):
                return to_request_error(call.code().name, call.details() or "", self.address.target)
            if len(responses) != 1:
                return GenerationFailed(f"The server at {self.address.target} sent {len(responses)} answers to a text.")
            answer.add_whole(responses[0])
            return answer

        def end(call: Any) -> None:
            try:
                result = take_result(call)
            except Exception as error:  # noqa: BLE001  gRPC's thread would only log it, and the call would never end
                result = GenerationFailed(f"The answer cannot be read: {error}")
            on_done(result)

        call = self._stub.Generate.future(
            pb.BatchedGenerationRequest(requests=[request.request], params=request.params)
        )
        call.add_done_callback(end)
        return call.cancel  # type: ignore[no-any-return]

    def model_info(self) -> pb.ModelInfoResponse:
        """The limits of the served model; asked once."""
        from tgis_server.wire import generation_pb2 as pb

        if self._model_info is None:
            with self._errors_in_words():
                self._model_info = self._stub.ModelInfo(pb.ModelInfoRequest())
        return self._model_info

    def tokenize(self, texts: list[str]) -> list[pb.TokenizeResponse]:
        """Pieces of each text, in order."""
        from tgis_server.wire import generation_pb2 as pb

        request = pb.BatchedTokenizeRequest(
            requests=[pb.TokenizeRequest(text=text) for text in texts], return_tokens=True
        )
        with self._errors_in_words():
            return list(self._stub.Tokenize(request).responses)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text as an input, special tokens included."""
        from tgis_server.wire import generation_pb2 as pb

        request = pb.BatchedTokenizeRequest(requests=[pb.TokenizeRequest(text=text) for text in texts])
        with self._errors_in_words():
            return [response.token_count for response in self._stub.Tokenize(request).responses]

    @contextlib.contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise to_request_error(error.code().name, error.details() or "", self.address.target) from None


@contextlib.contextmanager
def open_connected_channel(
    address: Address, files: TlsFiles | None, timeout_s: float, *, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[grpc.Channel]:
    """A gRPC channel that has a connection.

    Args:
        meanwhile: called once the channel connects in threads of its own.

    Raises:
        UsageError: a TLS file cannot be used.
        Unavailable: there is no connection within the time; the sentence says why.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C library would log failed connections too
    import grpc

    from tgis_server.wire.grpc_channels import UNLIMITED, Option, open_channel

    # Otherwise channels to one address share its pauses between attempts, which grow to two minutes.
    options: tuple[Option, ...] = (*UNLIMITED, ("grpc.use_local_subchannel_pool", 1))
    credentials = None
    if files is not None:
        credentials = grpc.ssl_channel_credentials(*files.for_grpc())
        options += (("grpc.ssl_target_name_override", files.name),) if files.name else ()
    with open_channel(address.target, credentials, options) as channel:
        get_state(channel)  # starts connecting
        meanwhile()
        if not is_connected(channel, timeout_s):
            from tgis_cli.clients.no_connection import explain_no_connection

            raise Unavailable(explain_no_connection(address, files, timeout_s))
        yield channel


def import_messages() -> None:
    """What the first call needs; it takes as long as a connection."""
    from tgis_server.wire import generation_pb2_grpc  # noqa: F401  only imported


def is_connected(channel: grpc.Channel, timeout_s: float) -> bool:
    """Wait until the connection is up or refused; give up after the timeout."""
    import grpc

    deadline = time.monotonic() + timeout_s
    while (state := get_state(channel)) is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE or time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def get_state(channel: grpc.Channel) -> grpc.ChannelConnectivity:
    """The state of the connection; starts connecting if nothing has yet.

    ``subscribe`` and ``channel_ready_future`` watch it in a thread that outlives their use by up to 0.2 s. If the
    channel closes meanwhile, that thread either delays it or dies with a traceback. Hence gRPC's own attribute.
    """
    from grpc._common import CYGRPC_CONNECTIVITY_STATE_TO_CHANNEL_CONNECTIVITY

    return CYGRPC_CONNECTIVITY_STATE_TO_CHANNEL_CONNECTIVITY[channel._channel.check_connectivity_state(True)]


def to_request_error(status: str, details: str, target: str) -> RequestError:
    """Turn a gRPC status into an error with a message for people.

    Args:
        target: ``HOST:PORT``.
    """
    if size := TOO_LARGE.search(details):
        return InvalidRequest(
            f"The text is too long: the request has {int(size[1]) / 1e6:.1f} MB, but the server at {target} accepts at "
            f"most {int(size[2]) / 1e6:.1f} MB."
        )
    if BROKEN.search(details):
        return Unavailable(f"The server at {target} {UNAVAILABLE}the connection broke before the answer was complete")
    if status == "UNAVAILABLE":
        return Unavailable(f"The server at {target} {UNAVAILABLE}{details or 'the connection broke'}")
    return with_status(status, f"{details or 'the server gave no reason'} ({status})")
