"""gRPC reflection: how clients such as grpcurl learn the API from the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection


class PoolWithMethods:
    """The default descriptor pool, which also finds the file of a method.

    The pool of protobuf's C implementation finds messages, enums and services by name, but not methods, and `grpcurl
    describe fmaas.GenerationService.Generate` asks for one.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802  the library's name
        """
        Raises:
            KeyError: there is no such symbol.
        """
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service_name, _, method_name = symbol.rpartition(".")
            service = self._pool.FindServiceByName(service_name)
            return service.methods_by_name[method_name].containing_service.file

    def __getattr__(self, name: str) -> Any:
        """All other searches are the pool's own."""
        return getattr(self._pool, name)


def make_reflection(service_names: Sequence[str]) -> Any:
    """The servicer of reflection, for these services."""
    return reflection.aio.ReflectionServicer(service_names, pool=PoolWithMethods())
