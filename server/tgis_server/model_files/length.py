"""The longest sequence that a config.json of any family names. What it means to an engine is the engine's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_INTEGER = 2**31 - 1  # no size of a model is larger, and all that is computed from one stays a number
# The first of these that is a positive integer counts.
LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)


@dataclass(frozen=True, slots=True)
class Length:
    """The longest sequence, prompt and output together, that a checkpoint is made for."""

    num_tokens: int
    reason: str  # where the number comes from
    is_limit: bool = False  # there is nothing beyond; otherwise text beyond may be of poor quality


def find_length(values: Mapping[str, Any]) -> Length | None:
    """What a config.json of any family names; ``None`` where it names nothing."""
    for key in LENGTH_KEYS:
        value = values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_INTEGER:
            return Length(value, f"{key} of config.json")
    return None
