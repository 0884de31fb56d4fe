"""Calls for the null server."""

from __future__ import annotations

from dataclasses import dataclass

from tgis_cli.bench.load.calls import Call
from tgis_server.wire import generation_pb2 as pb

TEXT = "as many words as tokens"


@dataclass(frozen=True, slots=True)
class NullFeed:
    """Equal calls."""

    output_tokens: int
    is_streamed: bool = True

    def make_call(self, index: int) -> Call:
        request = pb.GenerationRequest(text=TEXT)
        stopping = pb.StoppingCriteria(max_new_tokens=self.output_tokens, min_new_tokens=self.output_tokens)
        params = pb.Parameters(stopping=stopping)
        message: pb.SingleGenerationRequest | pb.BatchedGenerationRequest
        if self.is_streamed:
            message = pb.SingleGenerationRequest(request=request, params=params)
        else:
            message = pb.BatchedGenerationRequest(requests=[request], params=params)
        return Call(
            body=message.SerializeToString(),
            is_streamed=self.is_streamed,
            input_tokens=len(TEXT.split()),
            output_tokens=self.output_tokens,
        )
