"""From the parameters of a request to values that the rest of the server trusts, or to the contract's error text.

Checks run in the contract's order and the first that fails decides. Texts are part of the contract: clients match them.
Knows protobuf messages and limits, nothing of tokenizers, engines or gRPC statuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tgis_server.errors import InvalidRequest
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import LengthPenalty, SamplingParams, Wanted

DEFAULT_MAX_NEW_TOKENS = 20
MIN_TEMPERATURE = 0.05
MAX_TOP_K = 2**31 - 1  # more was a negative number to the first implementation of this API
MAX_TOP_N_TOKENS = 10
MAX_STOP_SEQUENCES = 6
MAX_STOP_SEQUENCE_BYTES = 240
STOP_SEQUENCES_TEXT = (
    f"can specify at most {MAX_STOP_SEQUENCES} non-empty stop sequences, "
    f"each not more than {MAX_STOP_SEQUENCE_BYTES} UTF8 bytes"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What this server allows; known once the engine is loaded."""

    max_sequence_length: int  # input and output together
    max_new_tokens: int  # less than max_sequence_length

    @classmethod
    def effective(cls, max_sequence_length: int, max_new_tokens: int) -> Limits:
        """A configured ``max_new_tokens`` that leaves no room for an input is lowered."""
        return cls(max_sequence_length, min(max_new_tokens, max_sequence_length - 1))


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """The parameters of one call, shared by its inputs."""

    sampling: SamplingParams
    seed: int | None  # as the client gave it; without one, each input gets its own
    max_new_tokens: int  # asked for, or the default; the context may allow less
    stop_sequences: tuple[str, ...]
    include_stop_sequence: bool
    time_limit_s: float | None
    truncate_input_tokens: int  # 0 = keep all
    wanted: Wanted
    input_text: bool  # echo the input before the output


def validate_params(params: pb.Parameters, limits: Limits, *, default_include_stop: bool) -> GenerationParams:
    """Check everything that can be checked without the input.

    Raises:
        InvalidRequest: with the contract's text.
    """
    is_sampling = params.method == pb.SAMPLE
    temperature, top_k, top_p, typical_p = _validate_sampling(params.sampling) if is_sampling else (0.0, 0, 1.0, 1.0)

    stopping = params.stopping
    max_new_tokens = stopping.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, limits.max_new_tokens)
    _require(max_new_tokens <= limits.max_new_tokens, f"max_new_tokens must be <= {limits.max_new_tokens}")
    _require(stopping.min_new_tokens <= max_new_tokens, "min_new_tokens must be <= max_new_tokens")

    repetition_penalty, length_penalty = _validate_penalties(params.decoding)

    _require(len(stopping.stop_sequences) <= MAX_STOP_SEQUENCES, STOP_SEQUENCES_TEXT)
    # The limit on top_n_tokens is younger than its neighbours: it stands where response options are looked at first.
    response = params.response
    _require(
        response.top_n_tokens <= MAX_TOP_N_TOKENS,
        f"top_n_tokens ({response.top_n_tokens}) must be <= {MAX_TOP_N_TOKENS}",
    )
    wanted = Wanted(
        logprobs=response.token_logprobs,
        ranks=response.token_ranks,
        top_n=response.top_n_tokens,
        generated_tokens=response.generated_tokens,
        input_tokens=response.input_tokens,
    )
    _require(
        not wanted.any or wanted.generated_tokens or wanted.input_tokens,
        "must request input and/or generated tokens to request extra token detail",
    )
    for sequence in stopping.stop_sequences:
        _require(1 <= len(sequence.encode()) <= MAX_STOP_SEQUENCE_BYTES, STOP_SEQUENCES_TEXT)
    _reject_guided(params.decoding)

    is_greedy = temperature == 0.0
    return GenerationParams(
        sampling=SamplingParams(
            temperature=temperature,
            top_k=0 if is_greedy else top_k,
            top_p=1.0 if is_greedy else top_p,
            typical_p=1.0 if is_greedy else typical_p,
            repetition_penalty=repetition_penalty,
            length_penalty=length_penalty,
            min_new_tokens=stopping.min_new_tokens,
        ),
        seed=params.sampling.seed if is_sampling and params.sampling.HasField("seed") else None,
        max_new_tokens=max_new_tokens,
        stop_sequences=tuple(stopping.stop_sequences),
        include_stop_sequence=(
            stopping.include_stop_sequence if stopping.HasField("include_stop_sequence") else default_include_stop
        ),
        time_limit_s=stopping.time_limit_millis / 1000 if stopping.time_limit_millis else None,
        truncate_input_tokens=params.truncate_input_tokens,
        wanted=wanted,
        input_text=response.input_text,
    )


def _validate_sampling(sampling: pb.SamplingParameters) -> tuple[float, int, float, float]:
    """Temperature, top_k, top_p and typical_p. A temperature that is sent as 0 means greedy, an absent one 1."""
    temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
    _require(
        temperature == 0.0 or MIN_TEMPERATURE <= temperature < math.inf, f"temperature must be >= {MIN_TEMPERATURE}"
    )
    top_p = sampling.top_p or 1.0
    _require(0.0 < top_p <= 1.0, "top_p must be > 0.0 and <= 1.0")
    _require(-math.inf < sampling.typical_p <= 1.0, "typical_p must be <= 1.0")
    typical_p = sampling.typical_p if sampling.typical_p > 0.0 else 1.0
    _require(sampling.top_k <= MAX_TOP_K, "top_k must be strictly positive")
    return temperature, sampling.top_k, top_p, typical_p


def _validate_penalties(decoding: pb.DecodingParameters) -> tuple[float, LengthPenalty | None]:
    repetition_penalty = decoding.repetition_penalty or 1.0
    _require(0.0 < repetition_penalty < math.inf, "repetition_penalty must be > 0.0")
    if not decoding.HasField("length_penalty"):
        return repetition_penalty, None
    factor = decoding.length_penalty.decay_factor
    _require(1.0 <= factor <= 10.0, "length_penalty must be >= 1.0 and <= 10.0")
    return repetition_penalty, LengthPenalty(decoding.length_penalty.start_index, factor)


def _reject_guided(decoding: pb.DecodingParameters) -> None:
    """``format: TEXT`` constrains nothing; no engine can do the others."""
    guided = decoding.WhichOneof("guided")
    if guided is None or (guided == "format" and decoding.format == pb.DecodingParameters.TEXT):
        return
    raise InvalidRequest(f"guided decoding ({guided}) is not available on this server: leave out decoding.{guided}")


def reject_adapter(
    request: pb.BatchedGenerationRequest | pb.SingleGenerationRequest | pb.BatchedTokenizeRequest,
) -> None:
    """Refuse tuned prompts and adapters by the texts of a server that has no store of them.

    ``adapter_id`` wins where both are set. An empty ``prefix_id`` that was sent is an id like any other.
    """
    if request.adapter_id:
        raise InvalidRequest("adapter_id supplied but no adapter store was configured")
    if request.HasField("prefix_id"):
        prefix_id = request.prefix_id
        raise InvalidRequest(f"can't retrieve prompt prefix with id '{prefix_id}': prefix id \"{prefix_id}\" not found")


def validate_length(num_input_tokens: int, params: GenerationParams, limits: Limits) -> int:
    """How many tokens may follow this input: ``max_new_tokens``, or what the context leaves if that is less.

    Raises:
        InvalidRequest: the input fills the context, alone or with ``min_new_tokens``.
    """
    longest, min_new_tokens = limits.max_sequence_length, params.sampling.min_new_tokens
    input_text = f"input tokens ({num_input_tokens}) plus prefix length (0)"
    _require(num_input_tokens < longest, f"{input_text} must be < {longest}")
    _require(
        num_input_tokens + min_new_tokens <= longest,
        f"{input_text} plus min_new_tokens ({min_new_tokens}) must be <= {longest}",
    )
    return min(params.max_new_tokens, longest - num_input_tokens)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise InvalidRequest(text)
