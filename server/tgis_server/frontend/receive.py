"""From the bytes of a request to its message, with the contract's statuses where there is none.

The gRPC library would decode by itself, but ends calls with RESOURCE_EXHAUSTED and UNKNOWN where clients know
OUT_OF_RANGE and INTERNAL. So it hands over bytes, and what it refuses by itself lies far above the configured limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from tgis_server.errors import RequestError, RequestTooLarge, Undecodable

Refuse: TypeAlias = Callable[[grpc.aio.ServicerContext, RequestError], Awaitable[None]]

WALL_FACTOR = 8  # a client that is somewhat too large learns the limit; nobody can send gigabytes
MAX_WALL_BYTES = 2**31 - 1  # the option of the library is an int


def library_limit_bytes(max_request_bytes: int) -> int:
    """The size above which the gRPC library refuses a request before all of it has arrived."""
    return min(WALL_FACTOR * max_request_bytes, MAX_WALL_BYTES)


async def abort(context: grpc.aio.ServicerContext, error: RequestError) -> None:
    """End a call with an error's status."""
    await context.abort(grpc.StatusCode[error.status], str(error))


def make_handlers(
    service: ServiceDescriptor, servicer: Any, max_request_bytes: int, refuse: Refuse = abort
) -> grpc.GenericRpcHandler:
    """The methods of a service, for a server to register. ``refuse`` ends calls that have no request."""
    handlers = {
        method.name: _make_handler(method, getattr(servicer, method.name), max_request_bytes, refuse)
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _make_handler(
    method: MethodDescriptor, behaviour: Callable[[Any, Any], Any], max_request_bytes: int, refuse: Refuse
) -> grpc.RpcMethodHandler:
    request_type = GetMessageClass(method.input_type)

    async def receive(raw: bytes, context: grpc.aio.ServicerContext) -> Message:
        try:
            return decode(request_type, raw, max_request_bytes)
        except (RequestTooLarge, Undecodable) as error:
            await refuse(context, error)
            raise

    async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> Any:
        return await behaviour(await receive(raw, context), context)

    async def handle_stream(raws: AsyncIterable[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        requests = (await receive(raw, context) async for raw in raws)
        async for response in behaviour(requests, context):
            yield response

    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(handle_stream, response_serializer=to_bytes)
    kind = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return kind(handle, response_serializer=to_bytes)


def to_bytes(response: Message | bytes) -> bytes:
    """Large answers come serialized already: the event loop does not do it."""
    return response if isinstance(response, bytes) else response.SerializeToString()


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
