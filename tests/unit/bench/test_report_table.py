"""The text of a result, as people read it on a terminal."""

from __future__ import annotations

import re

import pytest

from load_results import make_engine_result, make_result
from tgis_cli.bench.report.table import describe_result
from tgis_cli.bench.result import Estimate, Figure, Result


def describe(result: Result, width: int | None = 80, *, verbose: bool = False, is_colored: bool = False) -> list[str]:
    return describe_result(result, width, verbose=verbose, is_colored=is_colored)


def test_a_load_has_one_line_per_level_below_what_was_asked():
    lines = describe(make_result())

    assert lines[0] == "HuggingFaceTB/SmolLM2-135M, 128 tokens in, 64 out"
    assert [line.split()[:2] for line in lines[4:]] == [["1", "stream"], ["8", "streams"], ["32", "streams"]]
    assert lines[2].split() == ["output", "requests", "TTFT,", "ms", "ITL,", "ms", "e2e,", "s"]
    assert lines[3].split() == ["load", "tokens/s", "/s", "p50", "p95", "p50", "p95", "p50", "failed"]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("result", [make_result(fails=0.1), make_result(4, is_streamed=False), make_engine_result()])
def test_no_line_is_wider_than_the_terminal(result, width, verbose):
    assert max(map(len, describe(result, width, verbose=verbose))) <= width


@pytest.mark.parametrize("is_colored", [False, True])
def test_lines_are_ascii_without_spaces_at_their_ends(is_colored):
    lines = describe(make_result(8, fails=0.1, notes=["It is slow."]), verbose=True, is_colored=is_colored)
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]

    assert all(line.isascii() and line == line.rstrip() for line in plain)
    assert (plain != lines) is is_colored


def test_the_values_of_a_column_share_a_unit_and_have_three_digits_at_most():
    result = make_result(1, 32)
    for level, seconds in zip(result.detail["levels"], (0.0456, 12.3), strict=True):
        level["latencies"]["ttft"]["percentiles"]["50"]["value"] = seconds

    lines = describe(result)

    assert "TTFT, s" in lines[2]
    assert [line.split()[4] for line in lines[4:6]] == ["0.046", "12.3"]


def test_one_level_alone_shows_its_percentiles_with_their_intervals():
    lines = describe(make_result(8))

    row = next(number for number, line in enumerate(lines) if line.startswith("ITL, ms"))
    assert lines[row].split()[2:5] == ["17.4", "20.5", "21.9"]
    assert lines[row + 1].split()[0] == "17.3-17.4"


def test_several_levels_show_percentiles_only_if_asked():
    result = make_result()

    assert not any("samples" in line for line in describe(result))
    assert sum("samples" in line for line in describe(result, verbose=True)) == 3


def test_details_say_what_the_server_and_the_generator_did():
    lines = describe(make_result(32), None)
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in lines if re.match(r"[A-Z][a-z ]+  ", line))

    assert facts["Window"].startswith(
        "2.0 to 39.0 s of 41.5 s, 411 of 411 requests, 658 tokens/s (616 over the whole level)"
    )
    assert facts["First token"] == "client 0.001 + queue 0.743 + prefill 0.045 + rest 0.027 s on average"
    assert facts["Server"].startswith(
        "22.8 rows per step of 17.1 ms, at most 8 waiting, KV cache 41% used, at most 55%"
    )
    assert facts["Generator"].startswith("1 worker, requests sent 0.400 ms late at p99, event loop 0.900 ms late")


def test_latencies_from_the_intended_start_have_a_row():
    result = make_result(8)
    latencies = result.detail["levels"][0]["latencies"]

    latencies["e2e_intended"] = latencies["e2e"]

    assert [line[:13] for line in describe(result) if "intended" in line] == ["e2e, intended"]


def test_unary_calls_have_no_columns_of_the_first_token():
    lines = describe(make_result(1, 4, is_streamed=False))

    assert lines[3].split() == ["load", "tokens/s", "/s", "p50", "p95", "p99", "failed"]


def test_a_load_whose_requests_all_failed_says_why():
    lines = describe(make_result(8, fails=1.0, has_server=False))

    assert [line.split() for line in lines[2:5]] == [
        ["output", "requests"],
        ["load", "tokens/s", "/s", "failed"],
        ["8", "streams", "0", "0", "260"],
    ]
    assert lines[-2:] == [
        "failed   260 requests of 8 streams: RESOURCE_EXHAUSTED. Model is overloaded:",
        "         <b>no</b> free permits.",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Model is overloaded", "RESOURCE_EXHAUSTED. Model is overloaded: lower the load, or raise the server's"),
        ("RESOURCE_EXHAUSTED", "260 requests of 8 streams: RESOURCE_EXHAUSTED."),
    ],
)
def test_failures_come_with_advice_and_without_repetition(text, sentence):
    result = make_result(8, fails=1.0, has_server=False)
    result.detail["levels"][0]["failure_texts"] = {"RESOURCE_EXHAUSTED": text}

    assert sentence in describe(result, None)[-1]
    assert describe(result, None)[-1].count("RESOURCE_EXHAUSTED") == 1


def test_problems_come_before_notes_with_their_first_words_aligned():
    result = make_result(is_cut=True, notes=["It is slow."], problems=["The generator was late " + "and late " * 9])

    lines = describe(result)[-5:]

    assert [line[:9] for line in lines] == ["problem  ", " " * 9, "cut      ", " " * 9, "note     "]


def test_control_characters_of_a_server_or_model_are_shown_and_not_obeyed():
    result = make_result(8, fails=0.5, fingerprint={"model": {"name": "\x1b[2J"}}, notes=["\x1b]0;owned\a"])
    result.detail["levels"][0]["failure_texts"]["RESOURCE_EXHAUSTED"] = "\x1b[31mred"

    assert not any("\x1b" in line or "\a" in line for line in describe(result, verbose=True))


def test_other_kinds_have_a_line_per_group_and_intervals_below():
    lines = describe(make_engine_result())

    assert [line.split() for line in lines[2:6]] == [
        ["step", "limit"],
        ["ms", "tokens/s", "%"],
        ["decode,", "1", "rows", "at", "128", "12.3", "81", "1.23"],
        ["11.9-12.7", "79-84", "1.19-1.27"],
    ]


def test_a_result_without_figures_is_only_its_remarks():
    result = make_result(
        problems=["The server went away."], fingerprint={}, shape={}, figures=[], detail={"levels": []}
    )

    assert describe(result) == ["problem  The server went away."]


def test_a_figure_that_is_no_number_is_a_dash():
    result = make_engine_result()
    result.figures = [Figure("cold", "step_s", "s", "", Estimate(float("nan")))]

    assert describe(result)[-1].split() == ["cold", "-"]


def test_figures_of_one_name_in_different_units_have_tables_of_their_own():
    result = make_engine_result()
    ratio = Figure("B / A", "tokens_per_s", "", "higher", Estimate(1.02, 0.99, 1.05))
    result.figures = [Figure("A", "tokens_per_s", "tokens/s", "higher", Estimate(416.0)), ratio]

    lines = [line.split() for line in describe(result)[2:]]

    assert lines == [["tokens/s"], ["A", "416"], [], ["tokens"], ["B", "/", "A", "1.02"], ["0.99-1.05"]]


def test_a_table_of_rates_with_objectives_fits_80_columns():
    result = make_result(8, 16, 32)
    for level in result.detail["levels"]:
        level |= {"title": "12.25 requests/s", "num_judged": 1000, "num_good": 953}

    lines = describe(result)

    assert lines[4].split()[:3] == ["12.25", "requests/s", "416"]
    assert "met, %" in lines[3]
    assert max(map(len, lines)) <= 80
