"""Permits limit how many inputs are in progress. There is no queue: a call that lacks permits is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tgis_server.errors import Overloaded


class Permits:
    """The permits of a call. They are released when its inputs are finished, however slowly its client reads."""

    def __init__(self, admission: Admission, num_inputs: int) -> None:
        self._admission = admission
        self._num_inputs = num_inputs

    def release(self) -> None:
        """Idempotent."""
        self._admission.num_held -= self._num_inputs
        self._num_inputs = 0


class Admission:
    """Counts the inputs of calls in progress. Belongs to one event loop."""

    def __init__(self, max_inputs: int) -> None:
        self.max_inputs = max_inputs
        self.num_held = 0

    @contextmanager
    def hold(self, num_inputs: int) -> Iterator[Permits]:
        """Hold a permit for every input, or none at all, until they are released or the ``with`` block ends.

        Raises:
            Overloaded: too few permits are free. A batch of more than ``max_inputs`` never fits.
        """
        if self.num_held + num_inputs > self.max_inputs:
            raise Overloaded
        self.num_held += num_inputs
        permits = Permits(self, num_inputs)
        try:
            yield permits
        finally:
            permits.release()
