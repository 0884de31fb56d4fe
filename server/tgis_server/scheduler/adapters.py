"""Adapters: which sequences wait for one, and which adapter has which of the engine's places.

::

    needed → requested (``take_staging_requests``) → staged → has a place, or none while others are in use
                                           ↘ failed: the waiting sequences fail; the next request tries again

A sequence whose adapter is not staged waits here, not in the queue, so it blocks no other sequence however long the
staging takes. It keeps its position in the order of arrival. A place that no sequence with a slot uses can be reused
for another adapter; the least recently used one is reused first.
"""

from __future__ import annotations

from collections import OrderedDict

from tgis_server.scheduler.sequence import Sequence
from tgis_server.wire.messages import NO_ADAPTER, Activation, Adapter, Staged


class Adapters:
    """Owned by the scheduler."""

    def __init__(self, num_places: int) -> None:
        self._to_stage: dict[bytes, Adapter] = {}  # needed, not requested yet; by digest, like the next three
        self._held: dict[bytes, list[Sequence]] = {}  # sequences waiting for a needed or requested adapter
        self._staged: set[bytes] = set()
        self._place_of: dict[bytes, int] = {}
        self._digests: list[bytes | None] = [None] * num_places
        self._num_users = [0] * num_places
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_places))  # least recently used first

    @property
    def num_held(self) -> int:
        """Sequences waiting for their adapter."""
        return sum(map(len, self._held.values()))

    @property
    def num_used(self) -> int:
        """Places used by sequences with a slot."""
        return len(self._digests) - len(self._unused)

    # Staging

    def hold(self, sequence: Sequence) -> bool:
        """Keep a new sequence if its adapter is not staged; return whether it was kept."""
        adapter = sequence.submit.adapter
        if adapter is None or adapter.digest in self._staged:
            return False
        assert self._digests, "a request with an adapter reached an engine without places for adapters"
        if adapter.digest not in self._held:
            self._held[adapter.digest] = []
            self._to_stage[adapter.digest] = adapter
        self._held[adapter.digest].append(sequence)
        return True

    def take_staging_requests(self) -> list[Adapter]:
        """Adapters to be staged, each once. The caller answers each with ``Staged``."""
        adapters = list(self._to_stage.values())
        self._to_stage.clear()
        return adapters

    def settle(self, staged: Staged) -> list[Sequence]:
        """Note that an adapter is staged or has failed; return the sequences that waited for it."""
        self._to_stage.pop(staged.digest, None)
        if not staged.error:
            self._staged.add(staged.digest)
        return self._held.pop(staged.digest, [])

    def drop(self, sequence: Sequence) -> None:
        """Remove a waiting sequence that has ended."""
        adapter = sequence.submit.adapter
        assert adapter is not None
        held = self._held[adapter.digest]
        held.remove(sequence)
        if not held and adapter.digest in self._to_stage:  # no longer needed
            del self._held[adapter.digest], self._to_stage[adapter.digest]

    # Places

    def has_place(self, adapter: Adapter | None) -> bool:
        """Whether a sequence with this adapter could start now."""
        return adapter is None or adapter.digest in self._place_of or bool(self._unused)

    def take_place(self, sequence: Sequence) -> Activation | None:
        """Note that a sequence that gets a slot uses its adapter's place; return the activation if it needs one."""
        adapter = sequence.submit.adapter
        if adapter is None:
            return None
        activation = None
        if adapter.digest not in self._place_of:
            activation = self._activate(adapter.digest)
        place = self._place_of[adapter.digest]
        self._unused.pop(place, None)
        self._num_users[place] += 1
        sequence.adapter_place = place
        return activation

    def leave_place(self, sequence: Sequence) -> None:
        """Release the place of a sequence that loses its slot."""
        place = sequence.adapter_place
        if place == NO_ADAPTER:
            return
        sequence.adapter_place = NO_ADAPTER
        self._num_users[place] -= 1
        if not self._num_users[place]:
            self._unused[place] = None

    def _activate(self, digest: bytes) -> Activation:
        place = next(iter(self._unused))
        previous = self._digests[place]
        if previous is not None:
            del self._place_of[previous]
        self._digests[place] = digest
        self._place_of[digest] = place
        return Activation(place, digest)
