"""The shard's gRPC server: answers ``Info`` and ``Health`` from memory; ``Session`` links front-end and step loop.

This code runs in threads of the gRPC server, which touch the inbox, the outbox and the status, but never the runner.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from tgis_server.shard.inbox import Inbox, Requests, SessionEnded, Tick
from tgis_server.shard.status import ShardStatus
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire import shard_pb2_grpc
from tgis_server.wire.codec import decode_to_engine, encode_step_result
from tgis_server.wire.grpc_channels import UNLIMITED
from tgis_server.wire.messages import StepResult

logger = logging.getLogger(__name__)

READER_END_S = 5.0  # generous: the iterator of a finished call ends at once
NUM_WORKERS = 8  # one for the Session, the rest for probes


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A Session and the results to be written to it; ``None`` ends it."""

    number: int  # counted from 1
    results: queue.SimpleQueue[StepResult | None]


class Outbox:
    """Step results for the one open Session; results for any other are dropped."""

    def __init__(self) -> None:
        self._session: OpenSession | None = None
        self._num_opened = 0
        self._lock = threading.Lock()  # guards opening and closing: two Sessions may arrive at once

    @property
    def is_open(self) -> bool:
        """Whether a Session is open."""
        return self._session is not None

    def put(self, session: int, result: StepResult) -> None:
        """Send a result to a Session if it is still open."""
        if (current := self._session) and current.number == session:
            current.results.put(result)

    def open(self) -> OpenSession | None:
        """Open a Session; ``None`` if one is open already."""
        with self._lock:
            if self._session is not None:
                return None
            self._num_opened += 1
            self._session = OpenSession(self._num_opened, queue.SimpleQueue())
            return self._session

    def close(self, session: OpenSession) -> None:
        with self._lock:
            if self._session is session:
                self._session = None


class ShardServicer(shard_pb2_grpc.ShardServicer):
    """A follower has neither ``inbox`` nor ``outbox`` and refuses every Session."""

    def __init__(self, status: ShardStatus, inbox: Inbox | None, outbox: Outbox | None) -> None:
        self._status = status
        self._inbox = inbox
        self._outbox = outbox

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.InfoReply:
        if (info := self._status.info) is None:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"The model is not loaded yet: {self._status.phases.current}."
            )
        assert info is not None  # abort raises
        return info

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReply:
        reply = self._status.health()
        self._status.ask_tick()
        if self._inbox is not None:
            self._inbox.put(Tick())
        return reply

    def Session(self, requests: Iterator[pb.ToEngine], context: grpc.ServicerContext) -> Iterator[pb.FromEngine]:
        session = self._outbox.open() if self._outbox and self._status.info else None
        if session is None or self._inbox is None or self._outbox is None:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "This shard opens no session: it is not the leader, is still loading, or already has one.",
            )
            return
        inbox = self._inbox

        def read_requests() -> None:
            try:
                for message in requests:
                    inbox.put(Requests(session.number, decode_to_engine(message)))
            except grpc.RpcError:
                logger.debug("the session's peer is gone")  # gRPC ends the iterator this way
            finally:
                session.results.put(None)

        reader = threading.Thread(target=read_requests, name="session-reader", daemon=True)
        context.add_callback(lambda: session.results.put(None))
        reader.start()
        logger.debug("session opened")
        try:
            while (result := session.results.get()) is not None:
                yield encode_step_result(result)
        finally:
            self._outbox.close(session)
            reader.join(READER_END_S)
            inbox.put(SessionEnded(session.number))


def start_server(path: Path, servicer: ShardServicer) -> grpc.Server:
    """Serve on a Unix socket, even before anything is loaded. A stale socket is replaced; other files are not."""
    if path.is_socket():
        path.unlink()
    server = grpc.server(ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="grpc"), options=UNLIMITED)
    shard_pb2_grpc.add_ShardServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    path.chmod(0o600)
    return server
