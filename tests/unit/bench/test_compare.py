"""Which changes between two results count."""

from __future__ import annotations

import json
import math
import sys

import pytest

from tgis_cli.__main__ import main
from tgis_cli.bench.compare import Judgment, compare_results
from tgis_cli.bench.report.changes import describe_table, write_table
from tgis_cli.bench.result import Estimate, Figure, Result
from tgis_server.errors import UsageError

PHASES = {"starting": 3.5790, "warming up": 0.0075}  # seconds


def result_of(*figures: Figure, **changes) -> Result:
    facts = {
        "kind": "load",
        "created_at": "2026-01-01T00:00:00+00:00",
        "command": "tgis bench",
        "options": {},
        "shape": {"input_tokens": "128"},
        "fingerprint": {"cpu": {"model": "Fast 1"}},
    }
    return Result(**facts | changes, figures=list(figures))


def speed(value: float, reach: float = 0.01, *, group: str = "8 streams") -> Figure:
    estimate = Estimate(value, value * (1 - reach), value * (1 + reach))
    return Figure(group, "output_tokens_per_s", "tokens/s", "higher", estimate)


def latency(value: float, low: float | None = None, high: float | None = None, *, name: str = "ttft_p50") -> Figure:
    return Figure("8 streams", name, "s", "lower", Estimate(value, low, high))


def size(value: float) -> Figure:
    return Figure("cold start", "read_bytes", "bytes", "lower", Estimate(value))


def find_change(old: Figure, new: Figure, **options) -> Judgment:
    (row,) = compare_results(result_of(old), result_of(new), **options).rows
    return row.change


@pytest.mark.parametrize(
    ("new", "change"),
    [
        (speed(90), Judgment.REGRESSION),
        (speed(97), Judgment.WORSE),
        (speed(99), Judgment.NOISE),
        (speed(110), Judgment.BETTER),
        (speed(80, 0.3), Judgment.NOISE),
    ],
)
def test_a_regression_is_larger_than_allowed_and_larger_than_noise(new, change):
    assert find_change(speed(100), new) == change


@pytest.mark.parametrize(
    ("new", "change"),
    [
        (latency(0.12, 0.119, 0.121), Judgment.REGRESSION),
        (latency(0.103, 0.1025, 0.1035), Judgment.WORSE),
        (latency(0.08, 0.079, 0.081), Judgment.BETTER),
    ],
)
def test_of_latencies_lower_is_better(new, change):
    assert find_change(latency(0.1, 0.099, 0.101), new) == change


def test_the_allowed_share_can_be_set():
    assert find_change(speed(100), speed(90), max_regress=0.2) == Judgment.WORSE
    assert find_change(speed(100), speed(97), max_regress=0.01) == Judgment.REGRESSION


def test_a_figure_without_an_interval_is_told_but_does_not_count():
    table = compare_results(result_of(latency(0.1)), result_of(latency(0.2)))

    assert [row.change for row in table.rows] == [Judgment.UNKNOWN]
    assert "1 figure without an interval" in table.notes[0]


@pytest.mark.parametrize(
    ("low", "change"), [(0.05, Judgment.REGRESSION), (0.005, Judgment.NOISE)], ids=["many failures", "a few"]
)
def test_failures_that_were_none_count_beyond_chance(low, change):
    old = latency(0.0, 0.0, 0.01, name="failed_share")

    assert find_change(old, latency(0.1, low, 0.2, name="failed_share")) == change


def rate(value: float, low: float | None = None, high: float | None = None) -> Figure:
    return Figure("2 streams", "output_tokens_per_s", "tokens/s", "higher", Estimate(value, low, high))


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (rate(139, 130, 148), rate(0), Judgment.REGRESSION),
        (rate(139), rate(0), Judgment.REGRESSION),
        (rate(139, 0, 300), rate(0), Judgment.NOISE),
        (rate(0), rate(139, 130, 148), Judgment.BETTER),
        (rate(0), rate(0), Judgment.NOISE),
        (latency(0.0), latency(0.1), Judgment.UNKNOWN),
    ],
)
def test_a_throughput_that_falls_to_0_is_a_regression_also_without_an_interval(old, new, change):
    assert find_change(old, new) == change


def test_a_change_without_a_ratio_is_told_by_both_values():
    lines = describe_table(compare_results(result_of(rate(139, 130, 148)), result_of(rate(0))), None, is_colored=False)

    assert "worse    2 streams, output tokens 139 to 0 tokens/s." in lines


def test_an_interval_of_the_old_figure_down_to_0_leaves_the_change_without_an_upper_end():
    old, new = result_of(latency(0.1, 0.0, 0.2)), result_of(latency(0.1, 0.05, 0.2))
    table = compare_results(old, new)

    assert table.rows[0].ratio.high == math.inf
    assert "| +0.0 % | -62.5 % or more | noise |" in write_table(table)


@pytest.mark.parametrize(
    ("old", "new", "cells"),
    [
        (latency(0.1, 0.0, 0.2), latency(0.1, 0.0, 0.2), ("+0.0 %", "-")),
        (latency(0.001, 0.001, 0.001), latency(1.0, 1.0, 1.0), ("1e+03x", "1e+03x or more")),
        (latency(1.0), latency(1e300), ("1.0 | 1e+300", "1e+300x", "-")),
        (size(2048.0), size(5e-324), ("2 | 0", "-100.0 %", "-")),
    ],
)
def test_changes_that_percents_cannot_tell_are_short(old, new, cells):
    text = write_table(compare_results(result_of(old), result_of(new)))

    assert f"| {' | '.join(cells)} |" in text


def test_the_interval_of_the_ratio_combines_both():
    (row,) = compare_results(result_of(speed(100, 0.03)), result_of(speed(110, 0.04))).rows

    assert row.ratio.value == pytest.approx(1.1)
    assert row.ratio.low == pytest.approx(1.1 * 0.951, rel=0.002)
    assert row.ratio.high == pytest.approx(1.1 * 1.051, rel=0.002)


def test_with_many_figures_each_needs_a_clearer_change():
    names = [f"ttft_p{number}" for number in range(60)]
    old = [latency(1.0, 0.96, 1.04, name=name) for name in names]
    new = [latency(1.07, 1.03, 1.11, name=name) for name in names]

    assert find_change(old[0], new[0]) == Judgment.REGRESSION
    assert {row.change for row in compare_results(result_of(*old), result_of(*new)).rows} == {Judgment.NOISE}


def test_figures_that_are_neither_better_nor_worse_are_left_out():
    neutral = Figure("8 streams", "ttft_mean", "s", "", Estimate(1.0))

    assert len(compare_results(result_of(speed(1), neutral), result_of(speed(1), neutral)).rows) == 1


def test_groups_that_only_one_result_has_are_named():
    old = result_of(speed(1, group="1 stream"), speed(1))
    new = result_of(speed(1), speed(1, group="32 streams"))

    assert compare_results(old, new).notes == [
        "Only the old result has 1 stream.",
        "Only the new result has 32 streams.",
    ]


def test_doubtful_results_and_other_environments_are_said():
    old = result_of(speed(1), problems=["The generator was late."])
    new = result_of(speed(1), is_cut=True, fingerprint={"cpu": {"model": "Fast 2"}, "memory": {"free_bytes": 3}})

    assert compare_results(old, new).notes == [
        "The old result is invalid: The generator was late.",
        "The new result is from a run that was stopped early.",
        "The environments differ in cpu.model: Fast 1, then Fast 2.",
    ]


def test_results_of_other_loads_are_refused_unless_told_otherwise():
    old, new = result_of(speed(1)), result_of(speed(1), shape={"input_tokens": "64"})

    with pytest.raises(UsageError, match=r"different loads \(input_tokens: 128, then 64\)"):
        compare_results(old, new)
    assert "The loads differ in input_tokens: 128, then 64." in compare_results(old, new, any_shape=True).notes


def test_results_of_other_kinds_are_refused():
    with pytest.raises(UsageError, match="old result is from `tgis bench load`, but the new one is from"):
        compare_results(result_of(speed(1)), result_of(speed(1), kind="start"), any_shape=True)


def test_results_without_a_common_figure_are_refused():
    with pytest.raises(UsageError, match=r"no figure in common: the old one has 8 streams, the new one 1 stream\."):
        compare_results(result_of(speed(1)), result_of(speed(1, group="1 stream")))


def test_the_table_fits_80_columns_and_names_regressions():
    old = result_of(speed(812.1), latency(0.0412, 0.041, 0.042), latency(0.0, 0.0, 0.01, name="failed_share"))
    new = result_of(speed(700.3), latency(0.0411, 0.041, 0.042), latency(0.0, 0.0, 0.01, name="failed_share"))

    lines = describe_table(compare_results(old, new), 80, is_colored=False)

    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines[:3]] == [
        ["8", "streams", "old", "new", "change", "interval"],
        *(
            ["output", "tokens,", "tokens/s", "812", "700", "-13.8", "%", "-15.2", "to", "-12.3", "%", "REGRESSION"],
            ["TTFT", "p50,", "ms", "41.2", "41.1", "-0.2", "%", "-2.6", "to", "+2.5", "%", "noise"],
        ),
    ]
    assert lines[5].startswith("worse    8 streams, output tokens -13.8 %.")


def test_groups_share_one_table_and_a_figure_its_unit():
    old = result_of(*(Figure(group, "cold", "s", "lower", Estimate(value)) for group, value in PHASES.items()))

    lines = describe_table(compare_results(old, old), 80, is_colored=False)

    assert [line.split() for line in lines[:5]] == [
        ["old", "new", "change", "interval"],
        ["starting"],
        ["cold,", "ms", "3,579", "3,579", "+0.0", "%", "-", "?"],
        ["warming", "up"],
        ["cold,", "ms", "7.5", "7.5", "+0.0", "%", "-", "?"],
    ]


def test_on_a_narrow_terminal_each_figure_stands_below_its_group():
    old = result_of(*(Figure(group, "cold", "s", "lower", Estimate(value)) for group, value in PHASES.items()))

    lines = describe_table(compare_results(old, old), 30, is_colored=False)

    assert lines[:3] == ["starting", "  cold, ms", "  old       3,579"]


def test_markdown_has_the_name_of_a_group_in_a_row_of_its_own():
    old = result_of(*(Figure(group, "cold", "s", "lower", Estimate(value)) for group, value in PHASES.items()))

    assert write_table(compare_results(old, old)).splitlines()[2:4] == [
        "| **starting** | | | | | |",
        "|   cold, ms | 3,579 | 3,579 | +0.0 % | - | ? |",
    ]


def test_markdown_has_a_table_and_the_notes():
    text = write_table(compare_results(result_of(speed(100)), result_of(speed(80))))

    assert text.startswith("| 8 streams | old | new | change | interval |")
    assert "REGRESSION |" in text
    assert "- **worse**: 8 streams, output tokens -20.0 %." in text


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["tgis", "bench", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


@pytest.fixture
def results(tmp_path):
    for name, value in (("old", 100), ("new", 80)):
        (tmp_path / f"{name}.json").write_text(result_of(speed(value)).to_json())
    return tmp_path


def test_the_exit_code_tells_a_regression(results, monkeypatch, capfd):
    old, new = results / "old.json", results / "new.json"

    assert run(monkeypatch, old, new) == 1
    assert run(monkeypatch, new, old) == 0
    assert run(monkeypatch, old, new, "--max-regress", "30%") == 0
    assert "REGRESSION" in capfd.readouterr().out


def test_json_has_every_row(results, monkeypatch, capfd):
    assert run(monkeypatch, results / "old.json", results / "new.json", "--json") == 1

    facts = json.loads(capfd.readouterr().out)
    assert facts["has_regressed"] is True
    assert facts["rows"][0]["ratio"]["value"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("old.json", "missing.json"), "missing.json cannot be read: No such file or directory."),
        (("old.json", "new.json", "--max-regress", "10"), "or 0.05. Did you mean 10%?"),
        (("old.json", "new.json", "--max-regress", "much"), "--max-regress is 'much', but must be a share below 1"),
        (("old.json", "new.json", "--json", "--markdown"), "Give either --json or --markdown"),
        (("old.json",), "NEW.json is missing"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(results, monkeypatch, capfd, arguments, sentence):
    monkeypatch.chdir(results)

    assert run(monkeypatch, *arguments) == 2
    assert sentence in capfd.readouterr().err
