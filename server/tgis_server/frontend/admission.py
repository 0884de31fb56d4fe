"""Permits: how many inputs are in work at a time. No queue stands before them: who gets none is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tgis_server.errors import Overloaded


class Permits:
    """What a call holds. Returned when its inputs are no longer in work, however long its client takes to read."""

    def __init__(self, admission: Admission, num_inputs: int) -> None:
        self._admission = admission
        self._num_inputs = num_inputs

    def release(self) -> None:
        """Doing it twice changes nothing."""
        self._admission.num_held -= self._num_inputs
        self._num_inputs = 0


class Admission:
    """Counts inputs from the arrival of their call to its end. Belongs to one event loop."""

    def __init__(self, max_inputs: int) -> None:
        self.max_inputs = max_inputs
        self.num_held = 0

    @contextmanager
    def hold(self, num_inputs: int) -> Iterator[Permits]:
        """Hold a permit for each input inside the ``with`` block, at most: all or none.

        Raises:
            Overloaded: too few are free. A batch of more than ``max_inputs`` never fits.
        """
        if self.num_held + num_inputs > self.max_inputs:
            raise Overloaded
        self.num_held += num_inputs
        permits = Permits(self, num_inputs)
        try:
            yield permits
        finally:
            permits.release()
