"""Stop signals of commands that run until they are done."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tgis_cli.supervisor.signals import exit_until_supervised
from tgis_cli.terminal import stop_signals
from tgis_cli.terminal.stop_signals import STOP_SIGNALS, Interrupted, interrupted_by_signals, stopping_by


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_stop_signal_ends_the_block_as_an_error_that_nothing_takes_for_its_own():
    cleaned = []

    @interrupted_by_signals()
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:  # noqa: BLE001  as code that explains whatever comes
            pytest.fail("was taken for a failure")
        finally:
            cleaned.append(True)

    with pytest.raises(Interrupted, match="Stopped by SIGTERM") as stopped:
        work()
    assert (stopped.value.exit_code, cleaned) == (130, [True])


def test_an_echo_does_not_disturb_the_cleaning_and_a_later_signal_ends_it(monkeypatch: pytest.MonkeyPatch):
    later: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: later.append(number))

    @interrupted_by_signals()
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            assert later == []
            monkeypatch.setattr(stop_signals, "ECHO_S", 0)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        work()
    assert later == [signal.SIGTERM]


def test_before_there_are_children_a_second_signal_does_not_break_off_the_cleaning():
    exit_until_supervised()
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        work()

    assert (ended.value.code, cleaned) == (0, [True])
    assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}  # to the interpreter's end


def test_what_ends_without_a_signal_leaves_handlers_as_they_were():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    with interrupted_by_signals():
        pass

    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_work_that_can_be_stopped_is_asked_to_stop():
    stopped: list[signal.Signals] = []

    with interrupted_by_signals(), stopping_by(stopped.append):
        os.kill(os.getpid(), signal.SIGHUP)

    assert stopped == [signal.SIGHUP]
