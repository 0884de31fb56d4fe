"""The contract's decoding in float64, implemented from its text: slow, and independent of the engine's code.

Two correct programs may differ where a decision depends on the last bits of a float. In that case
``Reference.is_clear`` is false, and tests skip the example.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tgis_server.wire.messages import SamplingParams

CLOSE = 1e-4  # decisions nearer than this to their border are not clear


@dataclass
class Reference:
    """Scores on their way through the processors; ``is_clear`` is false if rounding may have decided something."""

    scores: np.ndarray  # (vocab,) float64
    is_clear: bool = True

    def keep(self, is_kept: np.ndarray) -> None:
        """Drop all other scores. The result is not clear if a dropped score nearly ties with a kept one."""
        dropped, kept = self.scores[~is_kept & np.isfinite(self.scores)], self.scores[is_kept]
        if dropped.size and kept.size:
            gaps = np.abs(dropped[:, None] - kept[None])
            self.is_clear &= not np.any((gaps > 0) & (gaps < CLOSE))
        self.scores = np.where(is_kept, self.scores, -np.inf)

    def compare(self, values: np.ndarray, border: float) -> None:
        """Note a comparison of ``values`` with ``border``: the result is not clear if one of them is close to it."""
        self.is_clear &= not np.any(np.abs(values - border) < CLOSE)


def process(
    logits: Sequence[float], seen: Iterable[int], index: int, params: SamplingParams, eos_ids: Sequence[int]
) -> Reference:
    """Steps (a) to (f) for the token after ``index`` generated ones; ``seen`` are the prompt and the output so far."""
    scores = np.array(logits, dtype=np.float64)
    ends = sorted(set(eos_ids))
    if index < params.min_new_tokens:
        scores[ends] = -np.inf
    elif params.length_penalty and index > params.length_penalty.start_index:
        steps = index - params.length_penalty.start_index
        scores[ends] += np.abs(scores[ends]) * (params.length_penalty.decay_factor**steps - 1)
    for token_id in set(seen):
        penalty = params.repetition_penalty
        scores[token_id] = scores[token_id] * penalty if scores[token_id] < 0 else scores[token_id] / penalty
    result = Reference(scores)
    if params.is_greedy:
        return result
    result.scores = scores / params.temperature
    if 0 < params.top_k < len(scores):
        result.keep(result.scores >= np.sort(result.scores)[-params.top_k])
    if params.top_p < 1:
        keep_top_p(result, params.top_p)
    if 0 < params.typical_p < 1:
        keep_typical(result, params.typical_p)
    return result


def keep_top_p(result: Reference, top_p: float) -> None:
    """Drop the least likely tokens (of ties, the highest ids first) whose total probability is at most 1 - top_p."""
    ids = np.arange(len(result.scores))
    order = np.lexsort((-ids, result.scores))
    cumulative = np.cumsum(softmax(result.scores)[order])
    result.compare(cumulative[:-1], 1 - top_p)
    is_kept = np.ones(len(ids), dtype=bool)
    is_kept[order[:-1][cumulative[:-1] <= 1 - top_p]] = False
    result.keep(is_kept & np.isfinite(result.scores))


def keep_typical(result: Reference, mass: float) -> None:
    """Keep the tokens whose surprise is nearest to the average: as many as ``mass`` needs, including ties."""
    live = np.flatnonzero(np.isfinite(result.scores))
    surprise = -logprobs(result.scores[live])
    probabilities = np.exp(-surprise)
    distance = np.abs(surprise - np.sum(probabilities * surprise))
    order = np.argsort(distance, kind="stable")
    cumulative = np.cumsum(probabilities[order])
    result.compare(cumulative[:-1], mass)
    last = order[min(int(np.sum(cumulative < mass)), len(order) - 1)]
    result.compare(distance[surprise != surprise[last]], distance[last])
    is_kept = np.zeros(len(result.scores), dtype=bool)
    is_kept[live[distance <= distance[last]]] = True
    result.keep(is_kept)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def choose(result: Reference, params: SamplingParams, seed: int, index: int) -> int:
    """Step (g)."""
    if params.is_greedy:
        best = result.scores.max()
        result.compare(result.scores[result.scores != best], best)
        return int(np.argmax(result.scores))
    cumulative = np.cumsum(softmax(result.scores))
    target = draw(seed, index) * cumulative[-1]
    result.compare(cumulative[:-1], target)
    return int(np.argmax(cumulative > target))


def draw(seed: int, index: int) -> float:
    """Output ``index`` of the generator named in docs/architecture.md, as a number in [0, 1) with 53 bits.

    SplitMix64 as published by its authors: a state that grows by a constant, and a function of that state.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(seed)
        for _ in range(index + 1):
            state += np.uint64(0x9E3779B97F4A7C15)
        z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) / 2.0**53


def logprobs(scores: np.ndarray) -> np.ndarray:
    best = scores.max()
    return scores - best - np.log(np.exp(scores - best).sum())


def rank(scores: np.ndarray, token_id: int) -> int:
    """1 + the number of strictly greater scores."""
    return 1 + int(np.sum(scores > scores[token_id]))


def alternatives(scores: np.ndarray, n: int) -> list[int]:
    """The ids that are not dropped and no worse than the n-th best, in ascending order; at most 4 n of them."""
    if not n:
        return []
    border = np.sort(scores)[-min(n, len(scores))]
    return np.flatnonzero((scores >= border) & np.isfinite(scores))[: 4 * n].tolist()
