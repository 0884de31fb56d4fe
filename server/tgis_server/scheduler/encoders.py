"""Shares encoder outputs between sequences.

The keys and values that a decoder reads from its encoder's output ("cross blocks") are written once, by the step that
runs the encoder. Once that step is committed, sequences with an equal ``encoder_root`` share the cross
blocks; until then, such sequences wait.
"""

from __future__ import annotations

from collections.abc import Iterator

from tgis_server.scheduler.blocks import BlockPool
from tgis_server.scheduler.sequence import Sequence


class Encodings:
    """Cross blocks in a pool, by encoded input. Owned by the memory that has the pool."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._encoding: dict[bytes, Sequence] = {}  # by root; sequences whose steps are not committed yet

    def is_encoding(self, sequence: Sequence) -> bool:
        """Whether another sequence is encoding the same input."""
        return sequence.encoder_root in self._encoding

    def find(self, sequence: Sequence) -> list[int]:
        """All blocks of an equal encoding, or none. Takes no reference."""
        found = self._pool.find_cached(self._keys(sequence))
        return found if len(found) == self._num_blocks(sequence) else []

    def begin(self, sequence: Sequence) -> None:
        """Note that a planned step encodes a sequence's input."""
        self._encoding[sequence.encoder_root] = sequence

    def commit(self, sequence: Sequence) -> None:
        """Publish a sequence's encoding if this sequence computed it."""
        if self._end(sequence):
            for block, key in zip(sequence.cross_blocks, self._keys(sequence), strict=True):
                self._pool.publish(block, key)

    def release(self, sequence: Sequence) -> None:
        """Note that a sequence loses its slot: if its encoding is not committed, another may encode the input."""
        self._end(sequence)

    def _end(self, sequence: Sequence) -> bool:
        is_own = self._encoding.get(sequence.encoder_root) is sequence
        if is_own:
            del self._encoding[sequence.encoder_root]
        return is_own

    def _num_blocks(self, sequence: Sequence) -> int:
        return self._pool.blocks_for(sequence.num_encoder_tokens)

    def _keys(self, sequence: Sequence) -> Iterator[bytes]:
        for i in range(self._num_blocks(sequence)):
            yield sequence.encoder_root + b"%d" % i
