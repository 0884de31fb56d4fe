"""The longest sequence stated in a config.json, whatever the family; engines interpret it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_INTEGER = 2**31 - 1  # no size in a model is larger, and results computed from it stay finite
# The first that is a positive integer is used.
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
    is_limit: bool = False  # longer is impossible; otherwise only the text's quality may suffer


def find_length(values: Mapping[str, Any]) -> Length | None:
    """The length in a config.json; ``None`` if it states none."""
    for key in LENGTH_KEYS:
        value = values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_INTEGER:
            return Length(value, f"{key} of config.json")
    return None
