"""From the bytes of a request to its message, with the contract's statuses where there is none.

The gRPC library would decode by itself, but ends calls with RESOURCE_EXHAUSTED and UNKNOWN where clients know
OUT_OF_RANGE and INTERNAL. So it hands over bytes, and what it refuses by itself lies far above the configured limit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from tgis_server.errors import RequestTooLarge, Undecodable
from tgis_server.frontend.service import GenerationServicer
from tgis_server.wire import generation_pb2

SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
WALL_FACTOR = 8  # a client that is somewhat too large learns the limit; nobody can send gigabytes
MAX_WALL_BYTES = 2**31 - 1  # the option of the library is an int


def library_limit_bytes(max_request_bytes: int) -> int:
    """The size above which the gRPC library refuses a request before all of it has arrived."""
    return min(WALL_FACTOR * max_request_bytes, MAX_WALL_BYTES)


def make_handlers(servicer: GenerationServicer, max_request_bytes: int) -> grpc.GenericRpcHandler:
    """The methods of the service, for a server to register."""
    handlers = {method.name: _make_handler(method, servicer, max_request_bytes) for method in SERVICE.methods}
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _make_handler(
    method: MethodDescriptor, servicer: GenerationServicer, max_request_bytes: int
) -> grpc.RpcMethodHandler:
    behaviour: Callable[[Message, Any], Awaitable[Any]] = getattr(servicer, method.name)
    request_type = GetMessageClass(method.input_type)

    async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> Any:
        try:
            request = decode(request_type, raw, max_request_bytes)
        except (RequestTooLarge, Undecodable) as error:
            await servicer.refuse(context, error)
        else:
            return await behaviour(request, context)

    kind = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return kind(handle, response_serializer=GetMessageClass(method.output_type).SerializeToString)


def decode(request_type: type[Message], raw: bytes, max_bytes: int) -> Message:
    """
    Raises:
        RequestTooLarge, Undecodable: with the contract's texts.
    """
    if len(raw) > max_bytes:
        raise RequestTooLarge(
            f"Error, message length too large: found {len(raw)} bytes, the limit is: {max_bytes} bytes"
        )
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        raise Undecodable(f"failed to decode Protobuf message: {error}") from error
