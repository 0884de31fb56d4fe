"""When a level ends before its time."""

from __future__ import annotations

from tgis_cli.bench.load.orders import Totals
from tgis_cli.bench.load.stop_rules import REFUSED_CALLS, REFUSED_S, SILENCE_S, STALL_S, StopRules


def find_reasons(*ticks: tuple[float, Totals]) -> list[str]:
    rules = StopRules()
    return [rules.find_reason(tick, now) for now, tick in ticks]


def test_a_server_that_falls_silent_in_its_answers_is_given_up_after_a_minute():
    streaming = Totals(in_flight=2, streaming=1, output_tokens=6)

    assert find_reasons(
        (0.0, Totals(in_flight=2, streaming=1, output_tokens=5)),
        (STALL_S - 1, streaming),
        (STALL_S + 1, streaming),
        (2 * STALL_S, streaming),
    ) == ["", "", "", "the server sent nothing for 60 s"]


def test_long_prompts_and_long_unary_answers_have_ten_minutes():
    waiting = Totals(in_flight=2)

    assert find_reasons((0.0, waiting), (2 * STALL_S, waiting), (SILENCE_S, waiting), (SILENCE_S + 1, waiting)) == [
        *["", "", ""],
        "the server sent nothing for 600 s",
    ]


def test_an_idle_server_is_not_silent():
    assert find_reasons((0.0, Totals()), (2 * SILENCE_S, Totals())) == ["", ""]


def test_a_server_that_refuses_every_call_is_given_up_after_two_seconds():
    failed = [Totals(failed=REFUSED_CALLS * number, in_flight=8, oldest_s=0.01) for number in range(3)]

    reasons = find_reasons((0.25, failed[0]), (REFUSED_S, failed[1]), (REFUSED_S + 0.25, failed[2]))

    assert reasons == ["", "", "the server refused 200 requests in a row"]


def test_refusals_beside_calls_that_are_served_or_in_work_are_no_reason():
    served = [Totals(failed=200 * number, output_tokens=number) for number in range(4)]
    in_work = [Totals(failed=200 * number, in_flight=32, oldest_s=float(number)) for number in range(4)]

    assert find_reasons(*enumerate(served)) == [""] * 4
    assert find_reasons(*enumerate(in_work)) == [""] * 4


def test_a_few_refusals_are_no_reason():
    assert find_reasons((0.0, Totals()), (10.0, Totals(failed=REFUSED_CALLS - 1))) == ["", ""]
