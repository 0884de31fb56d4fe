"""The one place where channels of gRPC are made, so that none goes through a proxy that must not."""

from __future__ import annotations

import os
from collections.abc import Sequence

import grpc

from tgis_server.host.proxies import goes_direct

Option = tuple[str, int | str]


def proxy_options(target: str) -> tuple[Option, ...]:
    """What a channel needs beside its own options. Where a proxy may be used, gRPC's variables decide."""
    return (("grpc.enable_http_proxy", 0),) if goes_direct(target, os.environ) else ()


def open_channel(
    target: str, credentials: grpc.ChannelCredentials | None = None, options: Sequence[Option] = ()
) -> grpc.Channel:
    """For threads; with credentials over TLS. Connects when first used."""
    options = (*options, *proxy_options(target))
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def open_async_channel(target: str, options: Sequence[Option] = ()) -> grpc.aio.Channel:
    """For an event loop, in plain text. Connects when first used."""
    return grpc.aio.insecure_channel(target, options=(*options, *proxy_options(target)))
