"""Results for programs and for pull requests: CSV, Markdown, and what is read back from JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict

import pytest

from load_results import make_engine_result, make_result
from tgis_cli.bench.load.detail import read_detail
from tgis_cli.bench.report.csv import write_csv
from tgis_cli.bench.report.markdown import write_markdown
from tgis_cli.bench.result import Estimate, Figure, drop_nonfinite
from tgis_server.errors import UsageError


def test_csv_has_a_line_per_figure_in_the_units_of_the_result():
    result = make_engine_result()
    result.figures = [
        Figure("8 streams, warm", "ttft_p50", "s", "lower", Estimate(0.0456, 0.04, 0.05), 128),
        Figure("8 streams, warm", "steal_share", "", "", Estimate(float("nan"))),
    ]

    assert list(csv.reader(io.StringIO(write_csv(result)))) == [
        ["group", "name", "unit", "value", "low", "high", "count"],
        ["8 streams, warm", "ttft_p50", "s", "0.0456", "0.04", "0.05", "128"],
        ["8 streams, warm", "steal_share", "", "", "", "", "0"],
    ]


def test_markdown_has_a_table_the_remarks_and_the_fingerprint_folded():
    lines = write_markdown(make_result(1, 8, notes=["It is slow."])).splitlines()

    assert lines[0] == "**HuggingFaceTB/SmolLM2-135M, 128 tokens in, 64 out**"
    assert lines[2].startswith("| load | output tokens/s | requests/s | TTFT p50, ms | TTFT p95, ms |")
    assert {line.count("|") for line in lines[2:6]} == {10}
    assert lines[7] == "- **note**: It is slow."
    assert lines[9] == "<details><summary>How it was measured</summary>"
    assert lines[-1] == "</details>"


def test_markdown_of_other_kinds_has_intervals_in_its_cells():
    assert "| decode, 1 rows at 128 | 12.3 (11.9-12.7) | 81 (79-84) | 1.23 (1.19-1.27) |" in write_markdown(
        make_engine_result()
    )


def test_markdown_escapes_what_names_and_texts_contain():
    attack = "</details><script> | `a` *b*\n# c"
    text = write_markdown(make_result(1, notes=[attack], fingerprint={"model": {"name": attack}}))

    assert "\\</details\\>\\<script\\> \\| \\`a\\` \\*b\\* \\# c" in text
    assert text.count("</details>") == 1


def test_the_details_of_a_load_survive_json():
    detail = make_result(8, fails=1.0).detail

    read = read_detail(json.loads(json.dumps(drop_nonfinite(detail))))

    assert drop_nonfinite(asdict(read)) == drop_nonfinite(detail)


def test_details_of_a_later_version_may_have_more_fields():
    detail = make_result(8).detail
    expected = read_detail(detail)

    detail["levels"][0]["moon"] = detail["moon"] = detail["levels"][0]["series"]["moon"] = "full"

    assert read_detail(detail) == expected


@pytest.mark.parametrize("missing", ["title", "latencies", "series", "output_tokens_per_s"])
def test_details_without_a_part_are_refused(missing):
    detail = make_result(8).detail
    del detail["levels"][0][missing]

    with pytest.raises(UsageError, match="damaged"):
        read_detail(detail)
