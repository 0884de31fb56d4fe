"""Stop signals of commands other than ``launch``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tgis_cli.supervisor.signals import exit_until_supervised
from tgis_cli.terminal import stop_signals
from tgis_cli.terminal.stop_signals import (
    STOP_SIGNALS,
    Interrupted,
    Stop,
    ended_by_signals,
    interrupted_by_signals,
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_stop_signal_ends_the_block_by_an_error_that_handlers_of_exception_do_not_catch():
    cleaned = []

    @interrupted_by_signals()
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:  # noqa: BLE001  like code that explains any error
            pytest.fail("was caught as a failure")
        finally:
            cleaned.append(True)

    with pytest.raises(Interrupted, match="Stopped by SIGTERM") as stopped:
        work()
    assert (stopped.value.exit_code, cleaned) == (143, [True])


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_errors_after_the_signal_do_not_hide_it(number: signal.Signals, exit_code: int):
    @ended_by_signals()
    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            raise OSError("the terminal is gone")

    with pytest.raises(Interrupted, match=f"^Stopped by {number.name}.$") as stopped:
        work()
    assert stopped.value.exit_code == exit_code


def test_without_a_signal_errors_pass_unchanged():
    with pytest.raises(OSError, match="the disk is full"), ended_by_signals():
        raise OSError("the disk is full")


def test_an_echo_does_not_interrupt_the_cleanup_but_a_later_signal_does(monkeypatch: pytest.MonkeyPatch):
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


def test_before_children_are_started_a_second_signal_does_not_interrupt_the_cleanup():
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
    assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}  # until the interpreter ends


def test_a_block_without_a_signal_restores_the_handlers():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    with interrupted_by_signals():
        pass

    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_command_that_a_signal_has_stopped_ends_with_its_code():
    stop, calls = Stop(), []
    assert (bool(stop), stop.exit_code(1)) == (False, 1)

    with interrupted_by_signals(), stop.calling(lambda: calls.append("stopped")):
        os.kill(os.getpid(), signal.SIGTERM)

    assert (bool(stop), stop.exit_code(1), calls) == (True, 143, ["stopped"])
    assert str(stop.as_error()) == "Stopped by SIGTERM."
