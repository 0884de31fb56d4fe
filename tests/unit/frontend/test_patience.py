"""How long clients may keep the server waiting, and what is dropped when memory is short."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable

import pytest

from tgis_server.errors import Overloaded
from tgis_server.frontend.metrics import Metrics
from tgis_server.frontend.transport import patience
from tgis_server.frontend.transport.patience import Patience

MIB = 1 << 20


def make_patience(**values: object) -> Patience:
    metrics = Metrics(max_sequence_length=10, max_new_tokens=10, max_batch_size=1)
    return Patience(**{"send_timeout_s": 30.0, "metrics": metrics, **values})


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


class Client:
    """Records the status with which it was ended."""

    def __init__(self) -> None:
        self.ended_with = ""

    def end(self, status: str, text: str) -> None:
        self.ended_with = status


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, set by the test."""
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    return now


def test_a_message_gets_an_extra_second_for_each_256_kib(clock):
    patient = make_patience()

    assert patient.send_bound_s(100) == 30
    assert patient.send_bound_s(MIB + patience.FREE_BYTES) == 34


def test_a_write_may_exceed_the_deadline_of_its_request_by_a_second(clock):
    patient = make_patience()

    assert patient.send_bound_s(0, deadline=105.0) == 6
    assert patient.send_bound_s(0, deadline=90.0) == 1
    assert patient.send_bound_s(0, deadline=1000.0) == 30


def test_a_client_that_takes_its_message_in_time_is_left_alone(clock):
    client, patient = Client(), make_patience()
    stop = patient.start_sending(client.end, 10)
    clock[0] += 29
    patient.check()
    stop()
    clock[0] += 10
    patient.check()

    assert client.ended_with == ""


def test_a_client_that_does_not_take_its_message_in_time_is_ended_once(clock):
    ends: list[str] = []
    patient = make_patience()
    stop = patient.start_sending(lambda status, text: ends.append(status), 10)
    for _ in range(3):
        clock[0] += 20
        patient.check()
    stop()

    assert ends == ["DEADLINE_EXCEEDED"]
    assert patient._sending == {}


def test_a_request_that_does_not_arrive_is_ended(clock):
    async def test() -> None:
        client, patient = Client(), make_patience()
        task = asyncio.create_task(arrive(patient, client))
        await asyncio.sleep(0)
        clock[0] += patience.RECEIVE_TIMEOUT_S
        patient.check()

        assert client.ended_with == "DEADLINE_EXCEEDED"
        task.cancel()

    run(test)


def test_the_oldest_of_too_many_slow_requests_are_ended(monkeypatch):
    monkeypatch.setattr(patience, "MAX_SLOW_REQUESTS", 2)

    async def test() -> None:
        clients, patient = [Client() for _ in range(4)], make_patience()
        tasks = [asyncio.create_task(arrive(patient, client)) for client in clients]
        await asyncio.sleep(0)
        for _ in range(3):
            patient.check()

        assert [client.ended_with for client in clients] == ["RESOURCE_EXHAUSTED"] * 2 + [""] * 2
        for task in tasks:
            task.cancel()

    run(test)


def test_new_requests_are_never_slow_however_many_there_are(monkeypatch):
    monkeypatch.setattr(patience, "MAX_SLOW_REQUESTS", 0)

    async def test() -> None:
        client, patient = Client(), make_patience()
        task = asyncio.create_task(arrive(patient, client))
        await asyncio.sleep(0)
        for _ in range(2):
            patient.check()

        assert client.ended_with == ""
        task.cancel()

    run(test)


async def arrive(patient: Patience, client: Client) -> None:
    await patient.receive(asyncio.Event().wait, client.end, limits_memory=True)


def test_when_memory_is_short_only_unread_answers_are_dropped(clock):
    async def test() -> None:
        old, stream, new, patient = Client(), Client(), Client(), make_patience(max_bytes_held=100)
        patient.hold_answer(old.end, 60)
        patient.start_sending(stream.end, 60)  # a frame: its bytes do not count
        clock[0] += 2
        patient.hold_answer(new.end, 60)

        assert (old.ended_with, stream.ended_with, new.ended_with) == ("RESOURCE_EXHAUSTED", "", "")

    run(test)


def test_a_request_waits_for_memory_and_leaves_the_queue_with_its_client():
    async def test() -> None:
        first, second, patient = Client(), Client(), make_patience(max_bytes_held=100)
        patient.hold_request("call", 100)
        gone = asyncio.create_task(arrive(patient, first))
        waiting = asyncio.create_task(arrive(patient, second))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert (patient._receiving, patient.num_waiting) == ({}, 1)

        patient.release_request("call")
        await asyncio.sleep(0.01)

        assert len(patient._receiving) == 1
        assert patient.num_bytes_held == 0
        waiting.cancel()

    run(test)


def test_a_request_is_refused_as_overload_if_memory_or_queue_stays_full(monkeypatch):
    monkeypatch.setattr(patience, "MEMORY_TIMEOUT_S", 0.01)

    async def test() -> None:
        patient = make_patience(max_bytes_held=100)
        patient.hold_request("call", 100)
        with pytest.raises(Overloaded):
            await arrive(patient, Client())
        assert patient.num_waiting == 0

        monkeypatch.setattr(patience, "MAX_WAITING", 0)
        with pytest.raises(Overloaded):
            await arrive(patient, Client())

    run(test)


def test_a_call_may_be_idle_between_two_requests(clock):
    async def test() -> None:
        client, patient = Client(), make_patience()
        task = asyncio.create_task(patient.receive(asyncio.Event().wait, client.end, is_first=False))
        await asyncio.sleep(0)
        clock[0] += patience.IDLE_TIMEOUT_S - 1
        patient.check()
        assert client.ended_with == ""

        clock[0] += 1
        patient.check()
        assert client.ended_with == "DEADLINE_EXCEEDED"
        task.cancel()

    run(test)


def test_memory_is_returned_to_the_system_several_times_after_growth(monkeypatch):
    trims: queue.SimpleQueue[None] = queue.SimpleQueue()
    sizes = {"resident": 60 * MIB}
    monkeypatch.setattr(patience, "trim_memory", lambda: trims.put(None))
    monkeypatch.setattr(patience, "get_resident_bytes", lambda: sizes["resident"])
    monkeypatch.setattr(patience, "CHECK_S", 0.001)

    async def test() -> None:
        checking = asyncio.create_task(make_patience().run())
        sizes["resident"] += patience.TRIM_BYTES - 1
        await asyncio.sleep(0.05)
        assert trims.empty()
        sizes["resident"] += 1
        for _ in patience.TRIM_CHECKS:
            await asyncio.to_thread(trims.get, timeout=5)
        await asyncio.sleep(0.05)
        assert trims.empty()
        checking.cancel()

    run(test)
