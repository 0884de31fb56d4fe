"""Choosing a token: argmax, or the inverse of the cumulative distribution at a uniform draw."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_greedy(scores: Tensor) -> Tensor:
    """(rows, vocab) -> (rows,): the id with the highest score, the lowest one if several tie."""
    return scores.argmax(-1)


def choose_sampled(scores: Tensor, draws: Tensor) -> Tensor:
    """Invert the cumulative distribution of softmax(scores), over ids in ascending order.

    Args:
        scores: (rows, vocab) float32; -inf is never chosen.
        draws: (rows, 1) float64 in [0, 1).

    Returns:
        (rows,) int64: the first id whose cumulative mass exceeds draw * total. The sums are float64, so that devices
        with different orders of summation choose the same id.
    """
    cumulative = scores.softmax(-1).double().cumsum(-1)
    targets = draws * cumulative[:, -1:]
    # right=True finds the first sum strictly above the target, and so skips ids without mass, which repeat a sum.
    chosen = torch.searchsorted(cumulative, targets, right=True)
    return chosen.squeeze(-1).clamp_(max=scores.shape[-1] - 1)
