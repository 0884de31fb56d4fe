"""Token details that requests want: log probability, rank, and the best alternatives.

They are computed on the device for a batch of (scores, token) pairs, without waiting for the device, and converted to
``TokenDetail`` on the host after the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tgis_server.wire.messages import TokenDetail, Wanted

TIES_FACTOR = 4  # if scores tie, a token has at most this many times n alternatives


@dataclass(frozen=True, slots=True)
class DetailTensors:
    """Details of N tokens. ``top_*`` are in ascending order of id; unused places have id -1."""

    logprobs: Tensor  # (N,) float32
    ranks: Tensor  # (N,) int64
    top_ids: Tensor  # (N, width) int64
    top_logprobs: Tensor  # (N, width) float32

    def map(self, function: Callable[[Tensor], Tensor]) -> DetailTensors:
        return DetailTensors(
            function(self.logprobs), function(self.ranks), function(self.top_ids), function(self.top_logprobs)
        )


def compute_details(scores: Tensor, ids: Tensor, top_n: Tensor | None, largest_n: int) -> DetailTensors:
    """Compute the details of ``ids`` in ``scores``.

    Args:
        scores: (N, vocab) float32.
        ids: (N,) int64, the token of each row.
        top_n: (N, 1) int64, the number of alternatives for each row, or ``None`` if no row wants any.
        largest_n: the maximum of ``top_n``, as the host knows it.
    """
    logprobs = scores.log_softmax(-1)
    chosen = scores.gather(-1, ids[:, None])
    ranks = 1 + (scores > chosen).sum(-1)
    chosen_logprobs = logprobs.gather(-1, ids[:, None]).squeeze(-1)
    if top_n is None or not largest_n:
        none = ids.new_empty(ids.shape[0], 0)
        return DetailTensors(chosen_logprobs, ranks, none, none.float())
    vocab_size = scores.shape[-1]
    largest_n = min(largest_n, vocab_size)
    border = scores.topk(largest_n, -1).values.gather(-1, top_n.clamp(1, largest_n) - 1)
    is_candidate = (scores >= border) & (scores > float("-inf"))
    # Keys decrease as ids increase, and are 0 for ids that are not candidates: the highest keys mark the lowest
    # candidate ids.
    keys = torch.arange(vocab_size, 0, -1, device=scores.device, dtype=torch.int32) * is_candidate
    best_keys = keys.topk(min(TIES_FACTOR * largest_n, vocab_size), -1).values.long()
    is_used = best_keys > 0
    top_ids = torch.where(is_used, vocab_size - best_keys, 0)
    top_logprobs = logprobs.gather(-1, top_ids)
    return DetailTensors(chosen_logprobs, ranks, top_ids.masked_fill_(~is_used, -1), top_logprobs)


def to_messages(tensors: DetailTensors, wanted: list[Wanted]) -> list[TokenDetail]:
    """One message per row, with the details that its request wants. Call this after the step."""
    logprobs, ranks = tensors.logprobs.tolist(), tensors.ranks.tolist()
    top_ids, top_logprobs = tensors.top_ids.tolist(), tensors.top_logprobs.tolist()
    return [_to_message(row, logprobs[i], ranks[i], top_ids[i], top_logprobs[i]) for i, row in enumerate(wanted)]


def _to_message(
    wanted: Wanted, logprob: float, rank: int, top_ids: list[int], top_logprobs: list[float]
) -> TokenDetail:
    pairs: list[tuple[int, float]] = []
    if wanted.top_n:
        used = [(i, x) for i, x in zip(top_ids, top_logprobs, strict=True) if i >= 0]
        pairs = used[: TIES_FACTOR * wanted.top_n]
        # Sort by what the client sees: without log probabilities, by id alone.
        pairs = sorted(pairs, key=lambda pair: (-pair[1], pair[0])) if wanted.logprobs else [(i, 0.0) for i, _ in pairs]
    return TokenDetail(
        logprob=logprob if wanted.logprobs else 0.0,
        rank=rank if wanted.ranks else 0,
        top_ids=tuple(i for i, _ in pairs),
        top_logprobs=tuple(x for _, x in pairs),
    )
