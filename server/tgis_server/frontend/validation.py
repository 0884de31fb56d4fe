"""Turns the parameters of a request into values that the rest of the server trusts, or into the contract's error text.

Checks run in the contract's order, and the first that fails determines the error. The texts are part of the contract,
because clients match against them. The checks are independent of doors, tokenizers, engines and statuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tgis_server.errors import InvalidRequest
from tgis_server.frontend.request import AdapterName, GenerationRequest, Parameters
from tgis_server.frontend.text import StopSequences
from tgis_server.wire.messages import SamplingParams, Wanted
from tgis_server.wire.parameter_ranges import (
    DECAY_FACTOR,
    DEFAULT_MAX_NEW_TOKENS,
    NUM_STOP_SEQUENCES,
    REPETITION_PENALTY,
    STOP_SEQUENCE_BYTES,
    TEMPERATURE,
    TOP_K,
    TOP_N_TOKENS,
    TOP_P,
    TYPICAL_P,
)

STOP_SEQUENCES_TEXT = (
    f"can specify at most {NUM_STOP_SEQUENCES.high} non-empty stop sequences, "
    f"each not more than {STOP_SEQUENCE_BYTES.high} UTF8 bytes"
)
# By door: the fields whose names differ from their kind of grammar.
GRAMMAR_FIELDS = {"grpc": {"json": "format", "lark": "grammar"}}


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The token limits of a request; known once the engine is loaded."""

    max_sequence_length: int  # input and output together
    max_new_tokens: int  # less than max_sequence_length

    @classmethod
    def effective(cls, max_sequence_length: int, max_new_tokens: int) -> RequestLimits:
        """Lower a configured ``max_new_tokens`` that leaves no token for an input."""
        return cls(max_sequence_length, min(max_new_tokens, max_sequence_length - 1))


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """The parameters of one call, shared by its inputs."""

    sampling: SamplingParams
    seed: int | None  # the client's; None if one is to be drawn for each input
    max_new_tokens: int  # requested, or the default; the context may allow less
    stop: StopSequences | None
    include_stop_sequence: bool
    time_limit_s: float | None
    truncate_input_tokens: int  # 0 = keep all
    wanted: Wanted
    input_text: bool  # echo the input before the output


def validate(request: GenerationRequest, limits: RequestLimits, *, default_include_stop: bool) -> GenerationParams:
    """Check everything that does not depend on the inputs.

    Raises:
        InvalidRequest: with the contract's text.
    """
    params = _validate_params(request.parameters, limits, default_include_stop=default_include_stop)
    _reject_grammar(request)
    reject_adapter(request.adapter)
    return params


def _validate_params(parameters: Parameters, limits: RequestLimits, *, default_include_stop: bool) -> GenerationParams:
    temperature, top_k, top_p, typical_p = (
        _validate_sampling(parameters) if parameters.is_sampling else (0.0, 0, 1.0, 1.0)
    )

    max_new_tokens = parameters.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, limits.max_new_tokens)
    _require(max_new_tokens <= limits.max_new_tokens, f"max_new_tokens must be <= {limits.max_new_tokens}")
    _require(parameters.min_new_tokens <= max_new_tokens, "min_new_tokens must be <= max_new_tokens")

    repetition_penalty = _validate_penalties(parameters)

    _require(len(parameters.stop_sequences) in NUM_STOP_SEQUENCES, STOP_SEQUENCES_TEXT)
    # The contract fixes this order: response options are checked between the number and the contents of stop sequences.
    wanted = parameters.wanted
    _require(wanted.top_n in TOP_N_TOKENS, f"top_n_tokens ({wanted.top_n}) must be <= {TOP_N_TOKENS.high}")
    _require(
        not wanted.any or wanted.generated_tokens or wanted.input_tokens,
        "must request input and/or generated tokens to request extra token detail",
    )
    for sequence in parameters.stop_sequences:
        _require(len(sequence.encode()) in STOP_SEQUENCE_BYTES, STOP_SEQUENCES_TEXT)

    is_greedy = temperature == 0.0
    include = parameters.include_stop_sequence
    return GenerationParams(
        sampling=SamplingParams(
            temperature=temperature,
            top_k=0 if is_greedy else top_k,
            top_p=1.0 if is_greedy else top_p,
            typical_p=1.0 if is_greedy else typical_p,
            repetition_penalty=repetition_penalty,
            length_penalty=parameters.length_penalty,
            min_new_tokens=parameters.min_new_tokens,
        ),
        seed=parameters.seed if parameters.is_sampling else None,
        max_new_tokens=max_new_tokens,
        stop=StopSequences(parameters.stop_sequences) if parameters.stop_sequences else None,
        include_stop_sequence=default_include_stop if include is None else include,
        time_limit_s=parameters.time_limit_ms / 1000 if parameters.time_limit_ms else None,
        truncate_input_tokens=parameters.truncate_input_tokens,
        wanted=wanted,
        input_text=parameters.input_text,
    )


def _validate_sampling(parameters: Parameters) -> tuple[float, int, float, float]:
    """Temperature, top_k, top_p and typical_p. A temperature of 0 means greedy; an absent one means 1."""
    temperature = 1.0 if parameters.temperature is None else parameters.temperature
    _require(temperature in TEMPERATURE, f"temperature must be >= {TEMPERATURE.low}")
    top_p = parameters.top_p or 1.0
    _require(top_p in TOP_P, "top_p must be > 0.0 and <= 1.0")
    _require(-math.inf < parameters.typical_p <= TYPICAL_P.high, "typical_p must be <= 1.0")
    typical_p = parameters.typical_p if parameters.typical_p > 0.0 else 1.0
    _require(parameters.top_k in TOP_K, "top_k must be strictly positive")
    return temperature, parameters.top_k, top_p, typical_p


def _validate_penalties(parameters: Parameters) -> float:
    """Check both penalties and return the repetition penalty; the length penalty is used unchanged."""
    repetition_penalty = parameters.repetition_penalty or 1.0
    _require(repetition_penalty in REPETITION_PENALTY, "repetition_penalty must be > 0.0")
    if parameters.length_penalty:
        _require(parameters.length_penalty.decay_factor in DECAY_FACTOR, "length_penalty must be >= 1.0 and <= 10.0")
    return repetition_penalty


def _reject_grammar(request: GenerationRequest) -> None:
    """Refuse every grammar: no engine supports guided decoding."""
    if request.grammar:
        kind = request.grammar.kind
        name = GRAMMAR_FIELDS[request.door].get(kind, kind)
        raise InvalidRequest(f"guided decoding ({name}) is not available on this server: leave out decoding.{name}")


def reject_adapter(adapter: AdapterName | None) -> None:
    """Refuse tuned prompts and adapters with the texts of a server that has no store for them."""
    if adapter is None:
        return
    if adapter.kind == "adapter":
        raise InvalidRequest("adapter_id supplied but no adapter store was configured")
    raise InvalidRequest(f"can't retrieve prompt prefix with id '{adapter.id}': prefix id \"{adapter.id}\" not found")


def validate_length(num_input_tokens: int, params: GenerationParams, limits: RequestLimits) -> int:
    """How many tokens may follow this input: the smaller of ``max_new_tokens`` and the rest of the context.

    Raises:
        InvalidRequest: the input fills the context, alone or together with ``min_new_tokens``.
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
