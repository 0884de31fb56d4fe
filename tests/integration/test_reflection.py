"""A client that knows nothing but the address finds the service by reflection and gets an answer."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def test_a_stock_client_lists_the_service_and_gets_an_answer(launch):
    server = launch("--rehearse")

    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "fmaas.GenerationService" in database.get_services()
        with pytest.raises(KeyError):
            database.FindFileContainingSymbol("fmaas.GenerationService.Nothing")
        # What `grpcurl describe` asks for. The client keeps what it has got, so each name is asked for once.
        assert database.FindFileContainingSymbol("fmaas.GenerationService.Generate").name == "generation.proto"
        service = DescriptorPool(database).FindServiceByName("fmaas.GenerationService")
        method = service.FindMethodByName("Generate")
        request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        answer = call(request_class(requests=[{"text": "Once upon a time"}]), timeout=10)

    assert answer.responses[0].generated_token_count == 20
    assert answer.responses[0].text
