"""Who encodes what at the moment, and what is encoded already.

The keys and values that a decoder reads of its encoder's output ("cross blocks") are written once, by the step that
runs the encoder. From the commit of that step on, sequences with an equal ``encoder_root`` share them; before, the
others wait: nobody may read what is not there yet.
"""

from __future__ import annotations

from collections.abc import Iterator

from tgis_server.scheduler.blocks import BlockPool
from tgis_server.scheduler.sequence import Sequence


class Encodings:
    """Cross blocks in a pool, by what was encoded. One owner: the memory that has the pool."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._encoding: dict[bytes, Sequence] = {}  # by root: its step is not committed

    def is_under_way(self, sequence: Sequence) -> bool:
        """Whether another sequence encodes the same just now."""
        return sequence.encoder_root in self._encoding

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks of an equal encoding, all of them or none. Takes no reference."""
        found = self._pool.find_cached(self._keys(sequence))
        return found if len(found) == self._num_blocks(sequence) else []

    def begin(self, sequence: Sequence) -> None:
        """A plan encodes it."""
        self._encoding[sequence.encoder_root] = sequence

    def commit(self, sequence: Sequence) -> None:
        """What it encoded is there."""
        if self._end(sequence):
            for block, key in zip(sequence.cross_blocks, self._keys(sequence), strict=True):
                self._pool.publish(block, key)

    def leave(self, sequence: Sequence) -> None:
        """It gives up its slot, perhaps before its encoding was committed: then somebody else may encode."""
        self._end(sequence)

    def _end(self, sequence: Sequence) -> bool:
        is_mine = self._encoding.get(sequence.encoder_root) is sequence
        if is_mine:
            del self._encoding[sequence.encoder_root]
        return is_mine

    def _num_blocks(self, sequence: Sequence) -> int:
        return self._pool.blocks_for(sequence.num_encoder_tokens)

    def _keys(self, sequence: Sequence) -> Iterator[bytes]:
        for i in range(self._num_blocks(sequence)):
            yield sequence.encoder_root + b"%d" % i
