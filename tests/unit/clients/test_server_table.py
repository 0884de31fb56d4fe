"""The table of `tgis ps`: aligned, and nothing is cut."""

from __future__ import annotations

from typing import Any

import pytest

from running import TLS, make_running
from tgis_cli.clients.server_status import State, Status
from tgis_cli.clients.server_table import Row, describe_rows, format_age


def make_row(status: Status, memory_bytes: int = 0, **facts: Any) -> Row:
    return Row(make_running(**facts), status, memory_bytes)


ROWS = [
    make_row(Status(State.READY, 3), 3 << 30, pid=1234567, tls=TLS),
    make_row(
        Status(State.STARTING, phase="reading weights", share=0.4), 900 << 20, model="org/a", grpc_port=None, pid=42
    ),
]


def without_age(lines: list[str]) -> list[str]:
    """Lines with a fixed age: an invented process counts as started with the machine."""
    age = format_age(ROWS[0].server.age_s)
    return [line.replace(age, "1d".rjust(len(age))) for line in lines]


def test_columns_are_aligned():
    width = len(format_age(ROWS[0].server.age_s))
    pad = " " * (max(width, 3) - 3)

    assert without_age(describe_rows(ROWS, None)) == [
        f"MODEL  GRPC      HTTP  {pad}AGE   MEMORY      PID  STATE",
        f"demo   8033 TLS  3000  {pad} 1d  3.0 GiB  1234567  ready, 3 calls",
        f"org/a  -         3000  {pad} 1d  900 MiB       42  starting: reading weights 40%",
    ]


def test_a_model_that_does_not_fit_has_a_line_of_its_own():
    rows = [*ROWS, make_row(Status(State.DRAINING, 1), model="/data/models/organisation/a-model-with-a-long-name")]

    lines = describe_rows(rows, 80)

    assert max(map(len, lines)) <= 80
    assert lines[3] == "/data/models/organisation/a-model-with-a-long-name"
    assert lines[4].endswith("  100  draining, 1 call")
    assert lines[4].index("8033") == lines[1].index("8033")
    assert len(describe_rows(rows, None)) == 4


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d"), (9e6, "104d")],
)
def test_ages_are_short(seconds: float, age: str):
    assert format_age(seconds) == age


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (Status(State.READY), "ready"),
        (Status(State.READY, 1), "ready, 1 call"),
        (Status(State.STARTING, phase="warming up"), "starting: warming up"),
        (Status(State.DRAINING), "draining, 0 calls"),
        (Status(State.SILENT), "no answer"),
        (Status(State.FROZEN), "frozen"),
    ],
)
def test_states_are_short(status: Status, text: str):
    assert str(status) == text


def test_as_json_every_fact_has_a_field_of_its_own():
    facts = ROWS[1].as_dict()

    assert (facts["state"], facts["phase"], facts["share"]) == ("starting", "reading weights", 0.4)
    assert (facts["grpc"], facts["http"], facts["tls"]) == (None, "http://127.0.0.1:3000", None)
    assert ROWS[0].as_dict()["tls"]["names"] == ["tgis.example.com"]


def test_a_rehearsal_is_marked_and_the_demo_model_has_its_own_name():
    ready = Status(State.READY)
    rows = [make_row(ready, label="rehearsal"), make_row(ready, label="demo model"), make_row(ready, model="org/a")]

    titles = [line.split("  ")[0] for line in describe_rows(rows, None)]

    assert titles == ["MODEL", "demo (rehearsal)", "demo", "org/a"]
