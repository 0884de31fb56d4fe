"""Logits processors for whole batches: each takes scores (rows, vocab) in float32, with one parameter per row.

Parameters are (rows, 1) tensors on the scores' device. Dropped scores become -inf. All processors are deterministic;
their docstrings say how ties at the cutoff are handled.
"""

from __future__ import annotations

import torch
from torch import Tensor

# On a CPU a full sort of a vocabulary takes milliseconds per row, and the cut is nearly always among the best few.
# On CUDA a full sort is cheap, and checking whether the best few suffice would mean waiting for the device.
NUM_SORTED_FIRST = 1024
# Far beyond any logit, yet finite in float32 even after division by a temperature: infinite scores would become NaN.
MAX_SCORE = 1e30


def keep_allowed(scores: Tensor, bits: Tensor) -> Tensor:
    """Keep the ids whose bit is set.

    Args:
        scores: not changed.
        bits: (rows, bytes) uint8; bit i % 8 of byte i // 8 is for id i. Ids beyond the last byte are dropped too.
    """
    powers = torch.arange(8, dtype=torch.uint8, device=bits.device)
    is_allowed = ((bits[:, :, None] >> powers) & 1).bool().flatten(1)[:, : scores.shape[-1]]
    is_allowed = torch.nn.functional.pad(is_allowed, (0, scores.shape[-1] - is_allowed.shape[-1]))
    return scores.masked_fill(~is_allowed, float("-inf"))


def mask_ends_(scores: Tensor, rows: Tensor, end_ids: Tensor) -> None:
    """Set the scores of all end ids to -inf in ``rows`` (indices), so that these sequences cannot end."""
    scores[rows[:, None], end_ids[None]] = float("-inf")


def raise_ends_(scores: Tensor, rows: Tensor, end_ids: Tensor, growth: Tensor) -> None:
    """Length penalty: end += abs(end) * growth, unless the end is dropped.

    ``growth``: (rows, 1), decay_factor ** t - 1, at least 0.
    """
    ends = scores[rows[:, None], end_ids[None]]
    raised = torch.where(ends > float("-inf"), ends + ends.abs() * growth, ends)  # not -inf + inf
    scores[rows[:, None], end_ids[None]] = raised


def penalize_repetition(scores: Tensor, is_seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive scores of seen ids by ``penalty`` and multiply negative ones. ``is_seen``: (rows, vocab) bool."""
    penalized = torch.where(scores < 0, scores * penalty, scores / penalty).clamp_(-MAX_SCORE, MAX_SCORE)
    return torch.where(is_seen & (scores > float("-inf")), penalized, scores)


def keep_top_k_(scores: Tensor, k: Tensor, largest_k: int) -> Tensor:
    """Keep the scores that are at least the k-th highest, including ties at the border.

    Args:
        scores: changed in place.
        k: (rows, 1) int64, at least 1.
        largest_k: the maximum of ``k``, as the host knows it.
    """
    largest_k = min(largest_k, scores.shape[-1])
    best = scores.topk(largest_k, -1).values
    border = best.gather(-1, (k - 1).clamp(max=largest_k - 1))
    return scores.masked_fill_(scores < border, float("-inf"))


def keep_top_p_(scores: Tensor, p: Tensor) -> Tensor:
    """Nucleus sampling: in descending order, keep each score if the scores before it have less mass than p.

    The best score is always kept. Of tied scores at the border, those with the lowest ids are kept.
    """
    normalizer = scores.logsumexp(-1, keepdim=True)
    size = scores.shape[-1]
    num_first = size if scores.is_cuda else min(size, NUM_SORTED_FIRST)
    best = scores.topk(num_first, -1).values
    is_kept = _is_in_nucleus(best, normalizer, p)
    if num_first < size and bool(is_kept[:, -1].any()):
        best = scores.sort(-1, descending=True).values
        is_kept = _is_in_nucleus(best, normalizer, p)
    num_kept = is_kept.sum(-1, keepdim=True).clamp_(min=1)  # NaN from a broken model compares false
    border = best.gather(-1, num_kept - 1)
    is_above = scores > border
    is_tied = scores == border
    num_tied = num_kept - is_above.sum(-1, keepdim=True)
    stays = is_above | (is_tied & (is_tied.cumsum(-1) <= num_tied))
    return scores.masked_fill_(~stays, float("-inf"))


def _is_in_nucleus(best: Tensor, normalizer: Tensor, p: Tensor) -> Tensor:
    """Which of the best scores, in descending order, are preceded by a mass of less than p."""
    probabilities = (best - normalizer).exp().double()
    return probabilities.cumsum(-1) - probabilities < p


def keep_typical_(scores: Tensor, p: Tensor) -> Tensor:
    """Locally typical sampling (arXiv:2202.00666): keep tokens of about average surprise, up to mass p.

    Tokens are taken in the order of abs(-log p - entropy), including ties at the border.
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
