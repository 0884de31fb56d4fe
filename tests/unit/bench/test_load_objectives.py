"""``--goodput`` as it is typed."""

from __future__ import annotations

import pytest

from tgis_cli.bench.load.objectives import Objective, parse_objectives
from tgis_server.errors import UsageError


def test_limits_have_units():
    parsed = parse_objectives("ttft<500ms, itl <= 50 ms,e2e<2.5s,tpot<900us", "--goodput")

    assert [(one.metric, pytest.approx(one.limit_s)) for one in parsed] == [
        ("ttft", 0.5),
        ("itl", 0.05),
        ("e2e", 2.5),
        ("tpot", 0.0009),
    ]


def test_they_are_shown_as_they_could_be_typed():
    assert [str(one) for one in (Objective("ttft", 0.5), Objective("e2e", 2.5))] == ["ttft<500ms", "e2e<2.5s"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a limit on a latency"),
        ("ttft", "not a limit on a latency"),
        ("ttft>5ms", "not a limit on a latency"),
        ("tfft<5ms", "unknown latency, tfft: did you mean ttft"),
        ("speed<5ms", "there are ttft, itl, tpot, e2e"),
        ("ttft<5", "with no unit: write ttft<5ms or ttft<5s"),
        ("ttft<5min", "an unknown unit, min"),
        ("ttft<0ms", "no request can meet"),
        ("ttft<5ms,ttft<6ms", "limits ttft twice"),
    ],
)
def test_what_is_no_limit_is_refused_with_the_reason(text: str, reason: str):
    with pytest.raises(UsageError, match=reason):
        parse_objectives(text, "--goodput")
