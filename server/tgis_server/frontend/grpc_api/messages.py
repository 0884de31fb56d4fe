"""Converts messages of ``fmaas.GenerationService`` to requests, and parts of an answer to messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tgis_server.frontend.output import Part, Token
from tgis_server.frontend.request import AdapterName, GenerationRequest, Parameters
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import Grammar, LengthPenalty, Wanted

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

# Requests


def parse_request(
    message: pb.BatchedGenerationRequest | pb.SingleGenerationRequest, inputs: Sequence[str]
) -> GenerationRequest:
    """
    Args:
        inputs: the texts of the message.
    """
    params = message.params
    return GenerationRequest(inputs, parse_parameters(params), parse_adapter(message), parse_grammar(params.decoding))


def parse_parameters(params: pb.Parameters) -> Parameters:
    sampling, stopping, decoding, response = params.sampling, params.stopping, params.decoding, params.response
    penalty = decoding.length_penalty if decoding.HasField("length_penalty") else None
    has_include = stopping.HasField("include_stop_sequence")
    return Parameters(
        is_sampling=params.method == pb.SAMPLE,
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        typical_p=sampling.typical_p,
        seed=sampling.seed if sampling.HasField("seed") else None,
        repetition_penalty=decoding.repetition_penalty,
        length_penalty=LengthPenalty(penalty.start_index, penalty.decay_factor) if penalty else None,
        max_new_tokens=stopping.max_new_tokens,
        min_new_tokens=stopping.min_new_tokens,
        time_limit_ms=stopping.time_limit_millis,
        stop_sequences=stopping.stop_sequences,  # not copied: there may be millions, which are refused later
        include_stop_sequence=stopping.include_stop_sequence if has_include else None,
        truncate_input_tokens=params.truncate_input_tokens,
        wanted=Wanted(
            logprobs=response.token_logprobs,
            ranks=response.token_ranks,
            top_n=response.top_n_tokens,
            generated_tokens=response.generated_tokens,
            input_tokens=response.input_tokens,
        ),
        input_text=response.input_text,
    )


def parse_adapter(
    message: pb.BatchedGenerationRequest | pb.SingleGenerationRequest | pb.BatchedTokenizeRequest,
) -> AdapterName | None:
    """``adapter_id`` wins if both are set. An empty ``prefix_id`` that was sent is a valid id."""
    if message.adapter_id:
        return AdapterName("adapter", message.adapter_id)
    return AdapterName("prefix", message.prefix_id) if message.HasField("prefix_id") else None


def parse_grammar(decoding: pb.DecodingParameters) -> Grammar | None:
    match decoding.WhichOneof("guided"):
        case "format":  # TEXT constrains nothing
            return None if decoding.format == pb.DecodingParameters.TEXT else Grammar("json", "")
        case "choice":  # not read: no engine supports them, and there may be millions
            return Grammar("choice", "")
        case "grammar":
            return Grammar("lark", decoding.grammar)
        case "regex" | "json_schema" as kind:
            return Grammar(kind, getattr(decoding, kind))
    return None


# Answers


def render_parts(parts: Iterable[Part]) -> pb.BatchedGenerationResponse:
    return pb.BatchedGenerationResponse(responses=map(render_part, parts))


def render_part(part: Part) -> pb.GenerationResponse:
    """A frame of a stream, or the whole answer. Fields without a value are left unset, to save time."""
    frame = pb.GenerationResponse(text=part.text, generated_token_count=part.num_generated)
    if part.tokens:
        add_tokens(frame.tokens, part.tokens)
    if part.num_input:
        frame.input_token_count, frame.seed = part.num_input, part.seed
        add_tokens(frame.input_tokens, part.input_tokens)
    if part.end_reason:
        frame.stop_reason = part.end_reason  # type: ignore[assignment]  # the numbers are the same
        frame.stop_sequence, frame.seed = part.stop_sequence, part.seed
    return frame


def add_tokens(field: RepeatedCompositeFieldContainer[pb.TokenInfo], tokens: Iterable[Token]) -> None:
    """Add tokens in place: protobuf copies a message that is added to another."""
    for token in tokens:
        add_top = field.add(text=token.piece, logprob=token.logprob, rank=token.rank).top_tokens.add
        for _, piece, logprob in token.top:
            add_top(text=piece, logprob=logprob)
