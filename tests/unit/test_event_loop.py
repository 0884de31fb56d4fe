"""The event loop wakes up once for all that gRPC has finished meanwhile."""

from __future__ import annotations

import asyncio
import socket

import grpc

from tgis_server.frontend.event_loop import EventLoop, ReadAtOnce


def test_the_readers_of_grpc_take_all_wake_ups_at_once():
    """Fails where a new version of the library goes another way."""

    async def serve() -> list[type]:
        server = grpc.aio.server()
        server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            watched = asyncio.get_running_loop()._selector.get_map().values()
            return [type(key.fileobj) for key in watched]
        finally:
            await server.stop(None)

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        types = runner.run(serve())

    assert types.count(ReadAtOnce) == 1


def test_all_bytes_that_have_come_are_read_together():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.__class__ = ReadAtOnce
        theirs.sendall(b"1" * 64)
        taken = ours.recv(1)
        ours.setblocking(False)
        theirs.sendall(b"1")

        assert (len(taken), ours.recv(1)) == (64, b"1")
