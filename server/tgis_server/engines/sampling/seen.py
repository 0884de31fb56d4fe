"""The tokens that each sequence has seen, for the repetition penalty. They stay on the device, so steps can overlap."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.sampling.staging import Staging
from tgis_server.wire.messages import TokenIds


class SeenTokens:
    """One line of flags per slot that uses the penalty. Nothing is allocated until a slot uses it."""

    def __init__(self, vocab_size: int, staging: Staging) -> None:
        self._vocab_size = vocab_size
        self._staging = staging
        self._flags: Tensor | None = None  # (lines, vocab) bool
        self._beginnings: dict[int, TokenIds] = {}  # slots whose flags are not set yet
        self._line_of_slot: dict[int, int] = {}
        self._unused_lines: list[int] = []

    def start(self, slot: int, token_ids: TokenIds) -> None:
        """Start a sequence with its existing tokens. Memory is allocated by :meth:`lines`."""
        self.stop(slot)
        self._beginnings[slot] = token_ids

    def stop(self, slot: int) -> None:
        """Forget a slot; unknown slots are ignored."""
        self._beginnings.pop(slot, None)
        line = self._line_of_slot.pop(slot, None)
        if line is not None:
            self._unused_lines.append(line)

    def lines(self, slots: list[int]) -> Tensor:
        """(slots,) int64: the lines with these slots' flags. May run out of memory, and can then be called again."""
        for slot in slots:
            if slot in self._beginnings:
                self._set_beginning(slot)
        return self._staging.put([self._line_of_slot[slot] for slot in slots], torch.int64)

    @property
    def flags(self) -> Tensor:
        """(lines, vocab) bool."""
        assert self._flags is not None, "no slot uses a repetition penalty"
        return self._flags

    def add(self, lines: Tensor, ids: Tensor) -> None:
        """Note one new token per line."""
        self.flags[lines, ids] = True

    def _set_beginning(self, slot: int) -> None:
        if not self._unused_lines:
            self._grow()
        line = self._unused_lines[-1]
        ids = self._staging.put(np.unique(np.asarray(self._beginnings[slot], dtype=np.int64)), torch.int64)
        self.flags[line].zero_().index_fill_(0, ids, True)
        self._line_of_slot[slot] = self._unused_lines.pop()
        del self._beginnings[slot]

    def _grow(self) -> None:
        old = 0 if self._flags is None else self._flags.shape[0]
        new = max(8, 2 * old)
        flags = torch.zeros(new, self._vocab_size, dtype=torch.bool, device=self._staging.device)
        if self._flags is not None:
            flags[:old] = self._flags
        self._flags = flags
        self._unused_lines.extend(range(new - 1, old - 1, -1))
