"""Logits processors on whole batches: each takes scores (rows, vocab) in float32, with one parameter per row.

Parameters are (rows, 1) tensors on the scores' device. What a processor drops becomes -inf. All are deterministic:
where scores tie at the border of a cut, the text says what is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

# On a CPU a full sort of a vocabulary takes milliseconds per row; the cuts nearly always lie within the best few.
# On CUDA a full sort is cheap, and looking whether the best few sufficed would wait for the device.
NUM_SORTED_FIRST = 1024
# Far beyond any logit, and still finite as float32 when a temperature has divided it: infinite scores end in NaN.
MAX_SCORE = 1e30


def keep_allowed(scores: Tensor, bits: Tensor) -> Tensor:
    """Keep the ids whose bit is set.

    Args:
        bits: (rows, bytes) uint8; bit i % 8 of byte i // 8 is id i. Ids beyond the last byte are dropped as well.
    """
    powers = torch.arange(8, dtype=torch.uint8, device=bits.device)
    is_allowed = ((bits[:, :, None] >> powers) & 1).bool().flatten(1)[:, : scores.shape[-1]]
    is_allowed = torch.nn.functional.pad(is_allowed, (0, scores.shape[-1] - is_allowed.shape[-1]))
    return scores.masked_fill(~is_allowed, float("-inf"))


def mask_ends_(scores: Tensor, rows: Tensor, end_ids: Tensor) -> None:
    """Make ending impossible for ``rows`` (indices): all end ids become -inf."""
    scores[rows[:, None], end_ids[None]] = float("-inf")


def raise_ends_(scores: Tensor, rows: Tensor, end_ids: Tensor, growth: Tensor) -> None:
    """Length penalty: end += abs(end) * growth, with growth = decay_factor ** t - 1 >= 0 as (rows, 1)."""
    ends = scores[rows[:, None], end_ids[None]]
    scores[rows[:, None], end_ids[None]] = ends + ends.abs() * growth


def penalize_repetition(scores: Tensor, is_seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive and multiply negative scores of the ids that were seen (rows, vocab; bool)."""
    penalized = torch.where(scores < 0, scores * penalty, scores / penalty).clamp_(-MAX_SCORE, MAX_SCORE)
    return torch.where(is_seen & (scores > float("-inf")), penalized, scores)


def keep_top_k_(scores: Tensor, k: Tensor, largest_k: int) -> Tensor:
    """Keep scores not below the k-th highest: ties at the border stay.

    Args:
        scores: changed in place.
        k: (rows, 1) int64, at least 1.
        largest_k: the largest of them, known on the host.
    """
    largest_k = min(largest_k, scores.shape[-1])
    best = scores.topk(largest_k, -1).values
    border = best.gather(-1, (k - 1).clamp(max=largest_k - 1))
    return scores.masked_fill_(scores < border, float("-inf"))


def keep_top_p_(scores: Tensor, p: Tensor) -> Tensor:
    """Nucleus: keep the best scores, in descending order, as long as those before have mass below p.

    At least the best is kept. Of equal scores at the border, those with the lowest ids are kept.
    """
    normalizer = scores.logsumexp(-1, keepdim=True)
    size = scores.shape[-1]
    num_first = size if scores.is_cuda else min(size, NUM_SORTED_FIRST)
    best = scores.topk(num_first, -1).values
    is_kept = _is_in_nucleus(best, normalizer, p)
    if num_first < size and bool(is_kept[:, -1].any()):
        best = scores.sort(-1, descending=True).values
        is_kept = _is_in_nucleus(best, normalizer, p)
    num_kept = is_kept.sum(-1, keepdim=True).clamp_(min=1)  # NaN, as a broken model computes it, compares with nothing
    border = best.gather(-1, num_kept - 1)
    is_above = scores > border
    is_tied = scores == border
    num_tied = num_kept - is_above.sum(-1, keepdim=True)
    stays = is_above | (is_tied & (is_tied.cumsum(-1) <= num_tied))
    return scores.masked_fill_(~stays, float("-inf"))


def _is_in_nucleus(best: Tensor, normalizer: Tensor, p: Tensor) -> Tensor:
    """Which of the best scores, in descending order, have less than mass p before them."""
    probabilities = (best - normalizer).exp().double()
    return probabilities.cumsum(-1) - probabilities < p


def keep_typical_(scores: Tensor, p: Tensor) -> Tensor:
    """Locally typical sampling (arXiv:2202.00666): keep the smallest set of mass p that surprises like the average.

    Tokens are taken in the order of abs(-log p - entropy); ties at the border stay.
    """
    log_probabilities = scores.log_softmax(-1)
    probabilities = log_probabilities.exp()
    entropy = -(log_probabilities * probabilities).nansum(-1, keepdim=True)
    distance = (-log_probabilities - entropy).abs()

    size = scores.shape[-1]
    num_first = size if scores.is_cuda else min(size, NUM_SORTED_FIRST)
    nearest, ids = distance.topk(num_first, -1, largest=False)
    mass = probabilities.gather(-1, ids).double().cumsum(-1)
    if num_first < size and bool((mass[:, -1:] < p).any()):
        nearest, ids = distance.sort(-1)
        mass = probabilities.gather(-1, ids).double().cumsum(-1)
    last = (mass < p).sum(-1, keepdim=True)
    border = nearest.gather(-1, last.clamp(max=nearest.shape[-1] - 1))
    return scores.masked_fill_(distance > border, float("-inf"))
