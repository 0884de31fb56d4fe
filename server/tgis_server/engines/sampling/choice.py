"""The choice itself: argmax, or the inverse of the cumulative distribution at a uniform draw."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_greedy(scores: Tensor) -> Tensor:
    """(rows, vocab) -> (rows,): the highest score; of equal ones the lowest id."""
    return scores.argmax(-1)


def choose_sampled(scores: Tensor, draws: Tensor) -> Tensor:
    """Invert the cumulative distribution of softmax(scores), over ids in ascending order.

    Args:
        scores: (rows, vocab) float32; -inf is never chosen.
        draws: (rows, 1) float64 in [0, 1).

    Returns:
        (rows,) the first id whose cumulative mass exceeds draw * total. The sum is taken in float64, so that the
        order of summation, which devices differ in, does not decide.
    """
    cumulative = scores.softmax(-1).double().cumsum(-1)
    targets = draws * cumulative[:, -1:]
    # right=True: strictly above, so that ids without mass, on which the sum stands still, are passed over.
    chosen = torch.searchsorted(cumulative, targets, right=True)
    return chosen.squeeze(-1).clamp_(max=scores.shape[-1] - 1)
