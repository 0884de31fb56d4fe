"""Opens all gRPC channels, so that none goes through a proxy by mistake, and defines their common options."""

from __future__ import annotations

import os
from collections.abc import Sequence

import grpc

from tgis_server.host.proxies import goes_direct

Option = tuple[str, int | str]

UNLIMITED: tuple[Option, ...] = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


def reconnect_options(first_ms: int, longest_ms: int) -> tuple[Option, ...]:
    """Pauses between attempts to connect. gRPC's own pauses start at a second and grow to two minutes."""
    return (
        ("grpc.initial_reconnect_backoff_ms", first_ms),
        ("grpc.min_reconnect_backoff_ms", first_ms),
        ("grpc.max_reconnect_backoff_ms", longest_ms),
    )


def proxy_options(target: str) -> tuple[Option, ...]:
    """Options that keep a channel from using a proxy. Empty if gRPC's variables may decide."""
    return (("grpc.enable_http_proxy", 0),) if goes_direct(target, os.environ) else ()


def open_channel(
    target: str, credentials: grpc.ChannelCredentials | None = None, options: Sequence[Option] = ()
) -> grpc.Channel:
    """A channel for threads, over TLS if there are credentials. It connects on first use."""
    options = (*options, *proxy_options(target))
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def open_async_channel(target: str, options: Sequence[Option] = ()) -> grpc.aio.Channel:
    """A plaintext channel for an event loop. It connects on first use."""
    return grpc.aio.insecure_channel(target, options=(*options, *proxy_options(target)))
