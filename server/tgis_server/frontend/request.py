"""A call as every door parses it, before any check. It is independent of protobuf, HTTP and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tgis_server.wire.messages import Grammar, LengthPenalty, Wanted


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters as the client sent them. Zero or None means not specified."""

    is_sampling: bool = False
    temperature: float | None = None  # 0 is a value: it means greedy
    top_k: int = 0
    top_p: float = 0.0
    typical_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 0.0
    length_penalty: LengthPenalty | None = None
    max_new_tokens: int = 0
    min_new_tokens: int = 0
    time_limit_ms: int = 0
    stop_sequences: Sequence[str] = ()
    include_stop_sequence: bool | None = None
    truncate_input_tokens: int = 0
    wanted: Wanted = field(default_factory=Wanted)
    input_text: bool = False  # echo the input before the output


@dataclass(frozen=True, slots=True)
class AdapterName:
    """The client's name for an adapter or a tuned prompt."""

    kind: Literal["adapter", "prefix"]
    id: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A call through any door: one or more inputs that share everything else."""

    inputs: Sequence[str]
    parameters: Parameters
    adapter: AdapterName | None = None
    grammar: Grammar | None = None
    door: Literal["grpc"] = "grpc"  # error texts use its field names
