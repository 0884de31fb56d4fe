"""The text of the page of a result; tests/integration/test_bench_page.py opens it in a browser."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from load_results import make_engine_result, make_result
from tgis_cli.bench.report.html import digest, write_html
from tgis_cli.bench.result import drop_nonfinite

ROOT = Path(__file__).resolve().parents[3]
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
ATTACK = "</script><script>alert(1)</script><!-- \x1b[2J & \u2028"


def read_data(page: str) -> object:
    found = DATA.search(page)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("result", [make_result(), make_result(8, fails=1.0, has_server=False)])
def test_a_page_carries_the_details_of_its_load(result):
    assert read_data(write_html(result)) == drop_nonfinite(result.detail)


def test_a_page_refers_to_nothing_outside_of_it():
    page = write_html(make_result())

    addresses = re.findall(r"""(?:https?:)?//[\w.-]+\.\w[^"'\s]*""", page)
    assert addresses == ["http://www.w3.org/2000/svg"]  # the name of SVG, which nothing loads
    assert re.findall(r'(?:src|href)="(.*?)"', page) == ["data:,"]


def test_the_policy_allows_only_the_script_and_the_style_of_the_page():
    page = write_html(make_result(2))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    script, style = (
        re.search(r"<script>(.*?)</script>", page, re.DOTALL),
        re.search(r"<style>(.*?)</style>", page, re.S),
    )

    assert policy is not None
    assert script is not None
    assert style is not None
    assert policy[1].startswith(
        f"default-src 'none'; script-src '{digest(script[1])}'; style-src '{digest(style[1])}'; img-src data:;"
    )


def test_names_and_texts_are_text_in_the_page():
    result = make_result(2, command=ATTACK, notes=[ATTACK], problems=[ATTACK], fingerprint={"model": {"name": ATTACK}})
    result.detail["levels"][0]["title"] = ATTACK

    page = write_html(result)

    assert page.count("<script") == page.count("</script>") == 2
    assert "<!--" not in page
    assert "\x1b" not in page
    assert read_data(page)["levels"][0]["title"] == ATTACK


def test_a_page_without_details_has_tables_and_no_charts():
    page = write_html(make_engine_result())

    assert read_data(page) is None
    assert '<section id="compared"' not in page
    assert "decode, 32 rows at 128" in page


def test_a_page_says_how_it_was_measured():
    page = write_html(make_result(8))

    for name, value in (("free", "6.0 GiB"), ("steal", "2.1%"), ("bandwidth all threads", "21.4 GB/s")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert "<h3>CPU</h3>" in page
    assert "<code>tgis bench load --concurrency 1,8,32 --input-tokens 128 --output-tokens 64</code>" in page


def test_a_load_of_failures_alone_has_no_empty_table():
    page = write_html(make_result(8, fails=1.0))

    assert "No request was completed in the steady window." in page
    assert "260 failed" in page


def test_the_files_of_the_page_are_in_the_package():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["tgis_cli"]

    assets = {path for path in (ROOT / "tgis_cli/bench/report/assets").iterdir() if path.is_file()}
    assert assets == {path for pattern in packaged for path in (ROOT / "tgis_cli").glob(pattern)}
