"""The randomness of sampling: a counter hash instead of a generator with state.

The draw for generated token ``index`` (0 = first) under ``seed`` is the output number ``index`` of the SplitMix64
generator (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) that starts at
``seed``; its upper 53 bits make a number in [0, 1). So a draw depends on seed and index alone: not on the batch, the
device, or on how often the sequence was preempted.
"""

from __future__ import annotations

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def splitmix64(seed: int, index: int) -> int:
    """Output number ``index`` of SplitMix64 with state ``seed``."""
    z = (seed + (index + 1) * GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(seed: int, index: int) -> float:
    """A float64 in [0, 1)."""
    return (splitmix64(seed, index) >> 11) * 2.0**-53
