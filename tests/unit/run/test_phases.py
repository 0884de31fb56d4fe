"""The phases of startup: when each one started, and how much it read."""

from __future__ import annotations

import time

from tgis_server.run.phases import Phases


def test_phases_follow_each_other_from_the_start_of_the_process():
    phases = Phases()

    phases.enter("reading weights")
    phases.enter("serving")

    starting, reading, serving = phases.encode()
    assert [phase.name for phase in (starting, reading, serving)] == ["starting", "reading weights", "serving"]
    assert starting.started_at_s < reading.started_at_s <= serving.started_at_s <= time.monotonic()
    assert phases.current == "serving"


def test_a_phase_entered_again_keeps_its_start_and_the_largest_byte_count():
    phases = Phases()
    phases.enter("reading weights", 10)
    [_, before] = phases.encode()

    phases.enter("reading weights", 30)
    phases.enter("reading weights", 0)

    [_, after] = phases.encode()
    assert (after.started_at_s, after.bytes) == (before.started_at_s, 30)
