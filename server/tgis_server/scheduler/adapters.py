"""Adapters: who waits until one is staged, and which one has which of the engine's places.

::

    needed → asked for (``take_to_stage``) → staged → has a place, or none while others are used
                                          ↘ failed: those that waited fail, the next request asks again

A sequence whose adapter is not staged waits here, not in the queue: however long that takes, it is in nobody's way. It
keeps its place in the order of arrival. A place is given to another adapter when no sequence with a slot uses it, the
least recently used one first.
"""

from __future__ import annotations

from collections import OrderedDict

from tgis_server.scheduler.sequence import Sequence
from tgis_server.wire.messages import NO_ADAPTER, Activation, Adapter, Staged


class Adapters:
    """One owner: the scheduler."""

    def __init__(self, num_places: int) -> None:
        self._to_stage: dict[bytes, Adapter] = {}  # needed, and nobody asked for them; all by digest
        self._held: dict[bytes, list[Sequence]] = {}  # of adapters that are needed or asked for: who waits
        self._staged: set[bytes] = set()
        self._place_of: dict[bytes, int] = {}
        self._digests: list[bytes | None] = [None] * num_places
        self._num_users = [0] * num_places
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_places))  # least recently used first

    @property
    def num_held(self) -> int:
        """Sequences that wait until their adapter is staged."""
        return sum(map(len, self._held.values()))

    @property
    def num_used(self) -> int:
        """Places that a sequence with a slot uses."""
        return len(self._digests) - len(self._unused)

    # Staging

    def hold(self, sequence: Sequence) -> bool:
        """Keep a newcomer that needs an adapter which is not staged; whether it does."""
        adapter = sequence.submit.adapter
        if adapter is None or adapter.digest in self._staged:
            return False
        assert self._digests, "a request with an adapter reached an engine that has no places for them"
        if adapter.digest not in self._held:
            self._held[adapter.digest] = []
            self._to_stage[adapter.digest] = adapter
        self._held[adapter.digest].append(sequence)
        return True

    def take_to_stage(self) -> list[Adapter]:
        """Adapters that somebody needs and nobody asked for yet. The caller asks, and answers with ``Staged``."""
        adapters = list(self._to_stage.values())
        self._to_stage.clear()
        return adapters

    def settle(self, staged: Staged) -> list[Sequence]:
        """An adapter is staged, or could not be; returns those that waited for it."""
        self._to_stage.pop(staged.digest, None)
        if not staged.error:
            self._staged.add(staged.digest)
        return self._held.pop(staged.digest, [])

    def drop(self, sequence: Sequence) -> None:
        """A sequence that waited here is over."""
        adapter = sequence.submit.adapter
        assert adapter is not None
        held = self._held[adapter.digest]
        held.remove(sequence)
        if not held and adapter.digest in self._to_stage:  # nobody needs it any more
            del self._held[adapter.digest], self._to_stage[adapter.digest]

    # Places

    def has_place(self, adapter: Adapter | None) -> bool:
        """Whether a sequence with this adapter could start now."""
        return adapter is None or adapter.digest in self._place_of or bool(self._unused)

    def take_place(self, sequence: Sequence) -> Activation | None:
        """A sequence gets a slot: sets its place, and returns who moves into it, if it is not there already."""
        adapter = sequence.submit.adapter
        if adapter is None:
            return None
        activation = None
        if adapter.digest not in self._place_of:
            activation = self._move_in(adapter.digest)
        place = self._place_of[adapter.digest]
        self._unused.pop(place, None)
        self._num_users[place] += 1
        sequence.adapter_place = place
        return activation

    def leave_place(self, sequence: Sequence) -> None:
        """A sequence gives up its slot."""
        place = sequence.adapter_place
        if place == NO_ADAPTER:
            return
        sequence.adapter_place = NO_ADAPTER
        self._num_users[place] -= 1
        if not self._num_users[place]:
            self._unused[place] = None

    def _move_in(self, digest: bytes) -> Activation:
        place = next(iter(self._unused))
        former = self._digests[place]
        if former is not None:
            del self._place_of[former]
        self._digests[place] = digest
        self._place_of[digest] = place
        return Activation(place, digest)
