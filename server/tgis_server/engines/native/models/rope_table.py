"""Tables of rotary cosines and sines by position, for every kind of ``RopeSpec``.

All sequences share one table: the rotation of a key depends on little more than its position, so prefix blocks can be
shared, and neither chunking nor other rows of the batch change results. In transformers, two kinds depend on the length
of the sequence; here they work as follows:

* dynamic: position p uses the base for a sequence of p + 1 tokens. Up to ``max_position`` the results equal those of
  transformers; beyond it, they equal those of token-by-token generation in transformers (which rotates a prompt by its
  full length).
* longrope: a sequence of at most ``original_max_position`` tokens uses the short factors at all positions, and a longer
  one uses the long factors. If a sequence crosses this border, the scheduler has it recomputed. transformers makes the
  same choice; if a text crosses the border during generation, Phi-3 recomputes it, whereas other classes mix both kinds
  of keys.

Frequencies are computed in float32 with the formulas of the papers, evaluated in the same order as in transformers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tgis_server.engines.native.spec import RopeSpec

ROWS_PER_CHUNK = 16384  # limits the float32 intermediates of a long table


def find_rope_border(rope: RopeSpec | None, max_sequence_length: int) -> int | None:
    """The length beyond which sequences need LongRoPE's long factors; ``None`` if no sequence ever needs them."""
    if rope is None:
        return None
    is_needed = rope.kind == "longrope" and max_sequence_length > rope.original_max_position
    return rope.original_max_position if is_needed else None


def build_table(rope: RopeSpec, max_sequence_length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines for positions 0 to ``max_sequence_length`` - 1.

    Returns:
        (rows, 2, rotary_dim): ``[p, 0]`` is for a head, and ``[p, 1]`` for the same head with its halves swapped; the
        sum of the two products is the head rotated to position p. If there is a border (:func:`find_rope_border`), the
        first ``border`` rows are for sequences within it, and row border + p is for position p of a longer sequence.
    """
    border = find_rope_border(rope, max_sequence_length)
    if border is None:
        return _build_rows(rope, max_sequence_length, dtype, device)
    long = replace(rope, short_factor=rope.long_factor)
    return torch.cat([_build_rows(r, n, dtype, device) for r, n in ((rope, border), (long, max_sequence_length))])


def _build_rows(rope: RopeSpec, num_positions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    table = torch.empty(num_positions, 2, rope.rotary_dim, dtype=dtype, device=device)
    for start in range(0, num_positions, ROWS_PER_CHUNK):
        stop = min(start + ROWS_PER_CHUNK, num_positions)
        positions = torch.arange(start, stop, dtype=torch.float32)
        angles = positions[:, None] * _frequencies(rope, positions)
        cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
        rows = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)
        table[start:stop].copy_(rows)
    return table


def _frequencies(rope: RopeSpec, positions: Tensor) -> Tensor:
    """Angle between neighbouring positions: (rotary_dim / 2,), or (positions, rotary_dim / 2) if it varies."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    match rope.kind:
        case "linear":
            return 1.0 / (rope.theta**exponents) / rope.factor
        case "dynamic":
            return _dynamic_frequencies(rope, exponents, positions)
        case "llama3":
            return _llama3_frequencies(rope, 1.0 / (rope.theta**exponents))
        case "yarn":
            return _yarn_frequencies(rope, rope.theta**exponents)
        case "longrope":
            return 1.0 / (torch.tensor(rope.short_factor, dtype=torch.float32) * rope.theta**exponents)
    return 1.0 / (rope.theta**exponents)


def _dynamic_frequencies(rope: RopeSpec, exponents: Tensor, positions: Tensor) -> Tensor:
    """NTK-aware scaling whose base grows with the length."""
    dim = rope.rotary_dim
    length = (positions + 1).clamp(min=rope.max_position)
    stretch = (rope.factor * length / rope.max_position) - (rope.factor - 1)
    base = rope.theta * stretch ** (dim / (dim - 2))
    return 1.0 / (base[:, None] ** exponents)


def _llama3_frequencies(rope: RopeSpec, frequencies: Tensor) -> Tensor:
    """Divide frequencies of long wavelengths by ``factor``, keep those of short ones, and blend those in between."""
    original = rope.original_max_position
    wavelength = 2 * math.pi / frequencies
    longest, shortest = original / rope.low_freq_factor, original / rope.high_freq_factor
    smooth = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    kept_or_divided = torch.where(wavelength > longest, frequencies / rope.factor, frequencies)
    is_between = (wavelength >= shortest) & (wavelength <= longest)
    return torch.where(is_between, blended, kept_or_divided)


def _yarn_frequencies(rope: RopeSpec, wavelengths: Tensor) -> Tensor:
    """YaRN, "NTK by parts": interpolate slow dimensions, keep fast ones, and ramp in between (arXiv:2309.00071)."""
    dim = rope.rotary_dim

    def dimension_of(rotations: float) -> float:
        return dim * math.log(rope.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.is_range_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp needs a width
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
