"""The randomness of sampling: a counter hash instead of a generator with state.

The draw for generated token ``index`` (from 0) under ``seed`` is output number ``index`` of the SplitMix64 generator
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) with initial state ``seed``; its
upper 53 bits make a number in [0, 1). So a draw depends only on seed and index, not on the batch, the device or
preemptions.
"""

from __future__ import annotations

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def splitmix64(seed: int, index: int) -> int:
    """Output number ``index`` of SplitMix64 with initial state ``seed``."""
    z = (seed + (index + 1) * GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(seed: int, index: int) -> float:
    """The draw for token ``index``: a float64 in [0, 1)."""
    return (splitmix64(seed, index) >> 11) * 2.0**-53
