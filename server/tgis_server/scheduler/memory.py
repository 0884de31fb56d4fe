"""Where keys and values live: what a newcomer would get, and what a sequence with a slot holds.

Two kinds, after what the engine can: blocks of a pool (``paged.py``), or rows of one padded batch (``rows.py``). The
rest of the scheduler knows neither blocks nor rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tgis_server.scheduler.sequence import Sequence
from tgis_server.wire.messages import Submit


@dataclass(slots=True)
class Offer:
    """What a sequence that waits would get now. Good until the next call that takes or gives back memory."""

    num_cached_tokens: int = 0  # of its beginning: computed already
    num_to_encode: int = 0  # tokens of its encoder that no other sequence has encoded
    cached: list[int] = field(default_factory=list)  # blocks of these tokens ...
    num_new: int = 0  # ... and how many more
    cross: list[int] = field(default_factory=list)  # blocks that another one has encoded ...
    num_new_cross: int = 0  # ... or how many to encode into


class Memory(Protocol):
    """One owner: ``Slots``."""

    @property
    def num_used(self) -> int:
        """KV blocks in use; 0 where there are none."""
        ...

    def refusal(self, submit: Submit) -> str | None:
        """Why a request could not even be served alone."""
        ...

    def offer(self, sequence: Sequence) -> Offer | None:
        """What it would get now; ``None``: it has to wait."""
        ...

    def take(self, sequence: Sequence, offer: Offer) -> None:
        """It gets a slot."""
        ...

    def grow(self, sequence: Sequence) -> bool:
        """Make room for all tokens that it knows; ``False``: somebody has to give up memory first."""
        ...

    def commit(self, sequence: Sequence, num_computed: int, *, encoded: bool) -> None:
        """So many tokens are computed, and its encoder's: others may read them."""
        ...

    def release(self, sequence: Sequence) -> None:
        """It gives up its slot."""
        ...
