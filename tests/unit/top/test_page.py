"""The page and the lines of `tgis top`: they fit, and show what a server says without obeying it."""

from __future__ import annotations

import json

import pytest

from tgis_cli.top.glance import Glance, Latency
from tgis_cli.top.page import Style, crop, draw_graph, make_page
from tgis_cli.top.processes import ServerProcess
from tgis_cli.top.window import Point
from tgis_server.words.layout import count_columns

NAMES = ("launcher", "frontend", *(f"shard-{rank}" for rank in range(8)))
BUSY = Glance(
    at=0.0,
    url="http://127.0.0.1:3000",
    model="org/name",
    mode="rehearsal",
    state="ready",
    up_s=7500.0,
    requests_per_s=4.25,
    output_tokens_per_s=1234.5,
    prompt_tokens_per_s=98765.0,
    running=31,
    waiting=7,
    calls_in_flight=38,
    kv_blocks_used=62,
    kv_blocks_total=100,
    window_s=60.0,
    queue=Latency(0.012, 0.1, 1.5, 0.05),
    first_token=Latency(0.212, 0.4, 2.5, 0.25),
    inter_token=Latency(0.021, 0.03, 0.05, 0.022),
    step_s=0.02,
    rows_per_step=30.9,
    prefix_hit_share=0.25,
    preemptions=3,
    failures={"cancelled": 2, "conc_limit": 1},
    processes=[ServerProcess(name, 100 + number, 1 << 30, 0.5) for number, name in enumerate(NAMES)],
    history=[Point(1.0, float(number), 0.0, 31, 7, 0.62) for number in range(200)],
)
GRAPHS = Style(has_graphs=True)


def changed(**fields: object) -> Glance:
    facts = {name: getattr(BUSY, name) for name in Glance.__dataclass_fields__}
    return Glance(**facts | fields)  # type: ignore[arg-type]


def test_a_page_has_everything_in_80_columns_and_24_rows():
    page = make_page(BUSY, 80, 23, GRAPHS)

    assert page[0] == "org/name (rehearsal)                                       http://127.0.0.1:3000"
    assert page[1].startswith("ready, up 2h ")
    assert [line[:25] for line in page[3:9]] == [
        "requests/s            4.2",
        "tokens/s            1,234",
        "prompt tokens/s    98,765",
        "running                31",
        "waiting                 7",
        "KV blocks used        62%",
    ]
    assert page[10:14] == [
        "last 60s              p50       p95       p99      mean",
        "queue               12 ms    100 ms     1.5 s     50 ms",
        "first token        212 ms    400 ms     2.5 s    250 ms",
        "between tokens      21 ms     30 ms     50 ms     22 ms",
    ]
    assert page[14:17] == [
        "rows per step 31, step 20 ms, prefix cache hits 25%, preemptions 3",
        "KV blocks 100, requests in flight 38, failures 3 (2 cancelled, 1 conc_limit)",
        "",
    ]
    assert page[17:] == [
        "process                        pid    memory       CPU",
        "launcher                       100   1.0 GiB       50%",
        "frontend                       101   1.0 GiB       50%",
        "shard-0                        102   1.0 GiB       50%",
        "shard-1                        103   1.0 GiB       50%",
        "6 others                             6.0 GiB      300%",
    ]


@pytest.mark.parametrize("columns", [1, 12, 40, 79, 80, 200])
@pytest.mark.parametrize("rows", [1, 5, 17, 18, 19, 24, 60])
@pytest.mark.parametrize("glance", [BUSY, Glance(0.0, "http://" + "h" * 90, "名" * 60, "", "no answer", "Gone. " * 40)])
def test_a_page_never_exceeds_the_terminal(columns: int, rows: int, glance: Glance):
    page = make_page(glance, columns, rows, GRAPHS)

    assert len(page) <= rows
    assert max(map(count_columns, page)) <= columns


def test_a_page_has_the_whole_reason_why_a_server_is_not_ready():
    page = make_page(changed(state="starting", reason="The model is still loading; " * 4), 60, None, GRAPHS)

    assert page[1].startswith("starting, up 2h ")
    assert " ".join(page[2:4]) == ("The model is still loading; " * 4).strip()
    assert page[4] == ""


def test_graphs_use_the_width_of_a_wide_terminal():
    lengths = [len(make_page(BUSY, columns, None, GRAPHS)[4]) for columns in (80, 120)]

    assert lengths == [80, 120]


def test_bars_are_as_high_as_their_share_of_the_highest_one():
    assert draw_graph([0.0, None, 1.0, 4.0, 8.0], 0) == "  ▂▅█"
    assert draw_graph([0.5], 1) == "▅"
    assert draw_graph([0.0, None], 0) == "  "


def test_control_characters_in_names_are_shown():
    glance = changed(model="a\x1b[2Jb\nc", reason="\x07")

    assert make_page(glance, 80, None, GRAPHS)[0].startswith("a\\u001b[2Jb c (rehearsal)")
    assert "\x1b" not in "".join(make_page(glance, 80, None, GRAPHS)) + glance.as_line()
    assert "\x07" not in glance.as_line()


def test_a_line_for_logs_has_what_matters_most():
    assert BUSY.as_line()[9:] == (
        "ready  4.2 requests/s  1,234 tokens/s  31 running  7 waiting  KV 62%  "
        "first token p50 212 ms p95 400 ms  between tokens p50 21 ms p95 30 ms"
    )


def test_the_line_of_a_server_that_is_gone_says_why():
    assert Glance(0.0, "u", "m", "", "no answer", "No server at h:1.").as_line()[9:] == "no answer: No server at h:1."


def test_json_has_every_field_but_the_graphs():
    facts = json.loads(json.dumps(BUSY.as_dict()))

    assert facts.keys() == Glance.__dataclass_fields__.keys() - {"history"}
    assert facts["first_token"] == {"p50_s": 0.212, "p95_s": 0.4, "p99_s": 2.5, "mean_s": 0.25}
    assert facts["processes"][0] == {"name": "launcher", "pid": 100, "memory_bytes": 1 << 30, "cpu_share": 0.5}


def test_cut_text_ends_with_a_mark():
    assert [crop("abcdef", columns) for columns in (0, 1, 3, 6)] == ["", "…", "ab…", "abcdef"]
    assert crop("名名名", 4) == "名…"
