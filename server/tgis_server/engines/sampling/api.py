"""The seam between the sampler and what computes: from logits to token ids for rows with different parameters.

All implementations take the same steps: (-) mask of a grammar; (a) end tokens masked below min_new_tokens, otherwise
length penalty; (b) repetition penalty; (c) temperature; (d) top_k; (e) top_p; (f) typical_p; (g) choice. Greedy rows
skip (c) to (f). Rows do not affect each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from tgis_server.engines.sampling.details import DetailTensors
from tgis_server.wire.messages import SamplingParams, Wanted

MAX_GROWTH = 1e30  # limit of a length penalty: far beyond any logit, yet finite in float32


class SamplingRow(NamedTuple):  # hundreds are created per step; a dataclass takes four times as long
    """A row of a batch for which a token is chosen."""

    slot: int
    token_index: int  # index of the new token among the sequence's generated tokens
    params: SamplingParams
    wanted: Wanted
    seed: int = 0  # of the random draws
    end_ids: frozenset[int] = frozenset()

    @property
    def masks_ends(self) -> bool:
        return self.token_index < self.params.min_new_tokens

    @property
    def end_growth(self) -> float:
        """Growth of the end tokens' logits, relative to their absolute values; 0 if the penalty does not apply."""
        penalty = self.params.length_penalty
        if penalty is None or self.masks_ends or self.token_index <= penalty.start_index:
            return 0.0
        try:
            return min(penalty.decay_factor ** (self.token_index - penalty.start_index) - 1.0, MAX_GROWTH)
        except OverflowError:
            return MAX_GROWTH

    @property
    def has_details(self) -> bool:
        return self.wanted.generated_tokens and self.wanted.any


class SeenRows(NamedTuple):
    """The tokens that the rows with a repetition penalty have seen."""

    rows: list[int]
    flags: Tensor  # (lines, vocab) bool
    lines: Tensor  # (len(rows),) int64: each row's line of ``flags``


@dataclass(frozen=True, slots=True)
class Sampled:
    """The chosen tokens and their details, on the device."""

    ids: Tensor  # (rows,) int64
    is_finite: Tensor  # (rows,) bool: whether all logits of a row are finite; if not, its token means nothing
    scores: Tensor  # (rows, vocab) float32, after all processors; dropped ids are -inf
    detail_rows: list[int]  # rows that want details of generated tokens
    details: DetailTensors | None  # one entry per detail row
    seen_lines: Tensor | None = None  # for the rows with a repetition penalty: their lines of flags
    seen_ids: Tensor | None = None  # and their new tokens


class SamplingOps(Protocol):
    """Computes on one device. No call waits for it."""

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes], seen: SeenRows | None
    ) -> Sampled:
        """Choose one token per row.

        Args:
            logits: (rows, vocab) float32, changed in place.
            rows: in the order of ``logits``.
            masks: the allowed tokens, by index into ``rows``; see ``Masks``.
            seen: what the rows with a repetition penalty; ``None`` if there are none.
        """
        ...

    def describe(self, logits: Tensor, ids: Tensor, top_n: int) -> tuple[Tensor, DetailTensors]:
        """Whether each row of (rows, vocab) float32 logits is finite, and the details of its token.

        Args:
            logits: not changed.
            ids: (rows,) int64.
            top_n: the number of alternatives for each row.
        """
        ...
