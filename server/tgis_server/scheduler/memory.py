"""Memory for keys and values: what a new sequence would get, and what a sequence with a slot holds.

It consists of blocks of a pool (``paged.py``) or of rows of one padded batch (``rows.py``), depending on the engine.
The rest of the scheduler is the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tgis_server.scheduler.sequence import Sequence
from tgis_server.wire.messages import Submit


@dataclass(slots=True)
class Offer:
    """What a waiting sequence would get now. Valid until memory is next taken or released."""

    num_cached_tokens: int = 0  # tokens of its prefix that are already computed
    num_to_encode: int = 0  # encoder tokens, unless another sequence has encoded the same input
    cached: list[int] = field(default_factory=list)  # blocks of the cached tokens
    num_new: int = 0  # further blocks
    cross: list[int] = field(default_factory=list)  # blocks of an encoding that exists
    num_new_cross: int = 0  # blocks to encode into, if none exists


class Memory(Protocol):
    """Owned by ``Slots``."""

    @property
    def num_used(self) -> int:
        """KV blocks in use; 0 with rows."""
        ...

    @property
    def num_cached(self) -> int:
        """KV blocks in the prefix cache, whether or not they are in use; 0 with rows."""
        ...

    def refusal(self, submit: Submit) -> str | None:
        """Why a request could not be served even alone; ``None`` if it could."""
        ...

    def offer(self, sequence: Sequence) -> Offer | None:
        """What the sequence would get now; ``None`` if it has to wait."""
        ...

    def take(self, sequence: Sequence, offer: Offer) -> None:
        """Take the memory offered."""
        ...

    def grow(self, sequence: Sequence) -> bool:
        """Extend the memory to all known tokens; ``False`` if another sequence must release some first."""
        ...

    def commit(self, sequence: Sequence, num_computed: int, *, encoded: bool) -> None:
        """Share the first ``num_computed`` tokens, and the encoder's if ``encoded``, with other sequences."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Release everything that the sequence holds."""
        ...
