"""Decodes the bytes of requests; those that are too large or invalid are refused with the contract's statuses.

The gRPC library could decode requests, but it would end calls with RESOURCE_EXHAUSTED and UNKNOWN instead of the
contract's OUT_OF_RANGE and INTERNAL. So the library only passes bytes on, with a size limit above the configured one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc.aio import ServicerContext

from tgis_server.errors import RequestError, RequestTooLarge, Undecodable
from tgis_server.frontend.grpc_api.end_call import Writer, bound_answer, end_call
from tgis_server.frontend.transport.floods import Accounts, OpenCall
from tgis_server.frontend.transport.patience import Patience

Refuse: TypeAlias = Callable[[ServicerContext, RequestError], Awaitable[None]]

# Up to the library's limit, a request that is too large is received, and its client is told the configured limit.
LIBRARY_LIMIT_FACTOR = 8
MAX_EXCESS_BYTES = 4 << 20
MAX_LIBRARY_LIMIT_BYTES = 2**31 - 1  # the library's option is an int
DEPARTURE_S = 0.5  # if the client has left, its call is cancelled within this time after the end of its request


def library_limit_bytes(max_request_bytes: int) -> int:
    """The size above which the gRPC library refuses a request without receiving it."""
    return min(LIBRARY_LIMIT_FACTOR * max_request_bytes, max_request_bytes + MAX_EXCESS_BYTES, MAX_LIBRARY_LIMIT_BYTES)


async def abort(context: ServicerContext, error: RequestError) -> None:
    """End a call with an error's status."""
    await context.abort(grpc.StatusCode[error.status], str(error))


async def read_shielded(context: ServicerContext) -> Any:
    """The next message of a call, read completely even if the caller is cancelled.

    grpc.aio leaks 80 bytes per cancelled read, and a client can open and reset thousands of calls per second.
    """
    return await asyncio.shield(context.read())


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """How all methods of a service treat their requests."""

    patience: Patience
    max_request_bytes: int
    refuse: Refuse = abort  # ends calls that have no valid request
    get_refusal: Callable[[], RequestError | None] = lambda: None  # if it returns an error, requests are refused unread
    accounts: Accounts = field(default_factory=Accounts)
    limits_memory: bool = False  # whether bytes of requests and answers count as held


def make_handlers(service: ServiceDescriptor, servicer: Any, policy: ServicePolicy) -> grpc.GenericRpcHandler:
    """The handlers of a service's methods, to register with a server."""
    handlers = {one.name: _make_handler(one, getattr(servicer, one.name), policy) for one in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _make_handler(
    method: MethodDescriptor, behaviour: Callable[[Any, Any], Any], policy: ServicePolicy
) -> grpc.RpcMethodHandler:
    """A handler that reads its own requests: each method is registered as if it took a stream; clients do not notice.

    The library would receive the whole of a unary request before it calls the handler, whatever the size of the request
    and however long that takes.
    """
    request_type = GetMessageClass(method.input_type)
    patience = policy.patience

    def open_call(context: ServicerContext) -> OpenCall:
        call = policy.accounts.open(context.peer())
        context.add_done_callback(lambda _: call.close(was_reset=not context.done()))
        if policy.limits_memory:
            context.add_done_callback(lambda _: patience.release_request(context))
        return call

    async def receive(context: ServicerContext, call: OpenCall, *, is_first: bool = True) -> Message | None:
        """The next request, or None after the last one. Ends the call if the request is refused."""
        try:
            if error := policy.get_refusal():
                raise error
            call.account.num_receiving += 1
            try:
                end = partial(end_call, context)
                read = partial(read_shielded, context)
                raw = await patience.receive(read, end, is_first=is_first, limits_memory=policy.limits_memory)
                if raw is grpc.aio.EOF:
                    return None
                call.note_request(len(raw))  # before num_receiving is decreased: another thread reads both
            finally:
                call.account.num_receiving -= 1
            if policy.limits_memory:
                patience.hold_request(context, len(raw))
            return decode(request_type, raw, policy.max_request_bytes)
        except RequestError as error:
            await refuse(context, error)
            raise

    async def receive_one(context: ServicerContext) -> Message:
        request = await receive(context, open_call(context))
        if request is None:
            # If the client has left, this call is about to be cancelled. grpc.aio leaks 400 bytes when a cancellation
            # interrupts a status, and in a flood of abandoned calls that would add up.
            await asyncio.sleep(DEPARTURE_S)
            await refuse(context, error := Undecodable("failed to decode Protobuf message: there is none"))
            raise error
        return request

    async def refuse(context: ServicerContext, error: RequestError) -> None:
        with Writer(context, patience).writing():
            await policy.refuse(context, error)

    async def answer(_: object, context: ServicerContext) -> bytes:
        response = to_bytes(await behaviour(await receive_one(context), context))
        bound_answer(context, patience, len(response), is_held=policy.limits_memory)
        return response

    async def answer_in_parts(_: object, context: ServicerContext) -> None:
        await behaviour(await receive_one(context), context)
        Writer(context, patience).bound_final_write(context)

    async def converse(_: object, context: ServicerContext) -> AsyncIterator[Any]:
        call, writer = open_call(context), Writer(context, patience)

        async def receive_all() -> AsyncIterator[Message]:
            is_first = True
            while (request := await receive(context, call, is_first=is_first)) is not None:
                is_first = False
                yield request

        async for response in behaviour(receive_all(), context):
            raw = to_bytes(response)
            with writer.writing(len(raw)):
                yield raw
        writer.bound_final_write(context)

    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(converse, response_serializer=to_bytes)
    if method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(answer_in_parts, response_serializer=to_bytes)
    return grpc.stream_unary_rpc_method_handler(answer)


def to_bytes(response: Message | bytes) -> bytes:
    """Serialize a response. Large ones have already been serialized off the event loop."""
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
