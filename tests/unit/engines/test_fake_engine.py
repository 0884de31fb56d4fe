"""The fake engine: adapters and guided rows. The scheduler's tests drive the rest of it."""

from __future__ import annotations

import pytest

from driving import VOCAB_SIZE, adapter
from tgis_server.engines.api import Capacity
from tgis_server.engines.fake import FakeRunner, first_allowed
from tgis_server.errors import ModelError
from tgis_server.options import Fault


def runner(fault: Fault | None = None) -> FakeRunner:
    return FakeRunner(vocab_size=VOCAB_SIZE, capacity=Capacity(4, 4, 16, max_adapters=1), fault=fault)


def test_a_fault_makes_staging_fail():
    with pytest.raises(ModelError, match="adapter a cannot be read: provoked by --fault"):
        runner(Fault.of("shard1:error@stage", "shard-1")).stage(adapter("a"))


def test_an_adapter_can_be_broken_by_its_id():
    with pytest.raises(ModelError, match="it is broken"):
        runner().stage(adapter("broken-1"))


@pytest.mark.parametrize(("token_id", "expected"), [(0, 3), (3, 3), (4, 9), (10, 3)])
def test_a_guided_row_takes_the_next_allowed_id_cyclically(token_id: int, expected: int):
    mask = (1 << 3 | 1 << 9).to_bytes(2, "little")

    assert first_allowed(token_id, mask) == expected
