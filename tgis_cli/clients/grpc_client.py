"""A gRPC client of a running server. gRPC is imported on first use."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgis_server.errors import RequestError, Unavailable, UsageError, with_status
from tgis_server.host.proxies import find_proxy
from tgis_server.words.url_credentials import mask_credentials

if TYPE_CHECKING:
    from tgis_server.wire import generation_pb2 as pb

DEFAULT_URL = "127.0.0.1:8033"
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

    def __init__(self, channel: Any, url: str) -> None:
        from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

        self._stub = GenerationServiceStub(channel)
        self._url = url

    @classmethod
    @contextlib.contextmanager
    def connect(cls, url: str = DEFAULT_URL, ca: Path | None = None) -> Iterator[Client]:
        """Connect to ``HOST:PORT``; with ``ca`` over TLS.

        Raises:
            UsageError: the URL or the CA file cannot be used.
            Unavailable: the server does not answer.
        """
        # Otherwise gRPC's C library logs failed connections too.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc

        from tgis_server.wire.grpc_channels import UNLIMITED, open_channel

        host, _, port = url.removeprefix("grpc://").rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(f"--url {url} is not HOST:PORT, such as {DEFAULT_URL}.")
        target = f"{host}:{port}"
        credentials = None
        if ca is not None:
            try:
                credentials = grpc.ssl_channel_credentials(ca.read_bytes())
            except OSError as error:
                raise UsageError(f"--ca {ca} cannot be read: {error.strerror}.") from error
        with open_channel(target, credentials, UNLIMITED) as channel:
            wait_for_connection(channel, target, with_tls=ca is not None)
            yield cls(channel, target)

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
            raise to_request_error(error.code().name, error.details() or "", self._url) from None


def wait_for_connection(channel: Any, target: str, *, with_tls: bool) -> None:
    """Wait until the connection is up or refused; give up after ``CONNECT_TIMEOUT_S``."""
    import grpc

    settled: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def note(state: grpc.ChannelConnectivity) -> None:
        if state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
            settled.put(state is grpc.ChannelConnectivity.READY)

    channel.subscribe(note, try_to_connect=True)
    with contextlib.suppress(queue.Empty):
        if settled.get(timeout=CONNECT_TIMEOUT_S):
            return
    raise Unavailable(explain_no_connection(target, with_tls=with_tls))


def explain_no_connection(target: str, *, with_tls: bool) -> str:
    """Distinguish a missing server from one that speaks a different protocol."""
    host, _, port = target.rpartition(":")
    variable, proxy = find_proxy(target, os.environ)
    if variable:
        return (
            f"No connection to {target} through the proxy {mask_credentials(proxy)} ({variable}): if the server is "
            f"internal, add {host.strip('[]')} to NO_PROXY."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError:
        return f"No server at {target}: start one with `tgis launch`, or give its address with --url HOST:PORT."
    hint = "is its certificate signed by the CA of --ca?" if with_tls else "if it uses TLS, give its CA with --ca FILE."
    return (
        f"The process listening at {target} did not accept a {'TLS' if with_tls else 'plain gRPC'} connection; {hint}"
    )


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
