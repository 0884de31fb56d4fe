"""The page of `tgis bench --html` in a real browser: no errors, no requests, no empty charts, nothing that overlaps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chromium import Page, find_chromium, open_page
from load_results import make_engine_result, make_result
from tgis_cli.bench.report.html import write_html
from tgis_cli.bench.result import Result

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium: apt-get install chromium."),
]

COMPARED = ["Time to first token", "Inter-token latency"]
SPLIT = ["Parts of the time to the first token"]
DISTRIBUTIONS = ["Time to first token", "Inter-token latency", "Time per output token", "End-to-end latency"]
OUTPUT = ["Output", "Requests in flight"]
SERVER = ["Server: sequences", "Server: KV cache"]
REQUESTS = ["From sending to the last token"]
RUN = [*OUTPUT, "Time to first token", "Inter-token latency"]


def make_gaps_of_zero() -> Result:
    """Tokens of one message arrive together, so that gaps may be 0, which a logarithmic axis does not have."""
    result = make_result(1, 8)
    level = result.detail["levels"][0]
    level["latencies"]["itl"]["percentiles"]["50"] = {"value": 0.0, "low": 0.0, "high": 0.3}
    level["series"]["itl_p50_s"][3] = 0.0
    level["series"]["itl_p95_s"][3] = 0.5
    return result


RESULTS: dict[str, tuple[Callable[[], Result], list[str]]] = {
    "several loads": (make_result, [*COMPARED, *SPLIT, *DISTRIBUTIONS, *RUN, *SERVER, *REQUESTS]),
    "one load": (partial(make_result, 8, fails=0.02), [*SPLIT, *DISTRIBUTIONS, *RUN, *SERVER, *REQUESTS]),
    "one request": (partial(make_result, 1, most=1), [*SPLIT, "Inter-token latency", *RUN, *SERVER, *REQUESTS]),
    "gaps of 0": (make_gaps_of_zero, [*COMPARED, *SPLIT, *DISTRIBUTIONS, *RUN, *SERVER, *REQUESTS]),
    "no metrics of the server": (partial(make_result, 4, has_server=False), [*DISTRIBUTIONS, *RUN, *REQUESTS]),
    "only failures": (partial(make_result, 8, has_server=False, fails=1.0), ["Requests in flight", *REQUESTS]),
    "unary calls": (
        partial(make_result, 1, 16, is_streamed=False),
        ["End-to-end latency", "End-to-end latency", *OUTPUT, *SERVER, *REQUESTS],
    ),
    "many loads": (
        partial(make_result, 1, 2, 4, 8, 12, 16, 24, 32, 48),
        [*COMPARED, *SPLIT, *DISTRIBUTIONS, *RUN, *SERVER, *REQUESTS],
    ),
    "another kind": (make_engine_result, []),
}
GET_TITLES = "[...document.querySelectorAll('figure')].map((each) => each.querySelector('b').textContent)"
FIND_FAULTS = """(() => {
  const faults = [];
  if (document.documentElement.scrollWidth > innerWidth) faults.push("the page is wider than the window");
  const isCut = (each) => each.scrollWidth > each.clientWidth + 1 && !each.closest(".table") && each.clientWidth;
  for (const each of document.querySelectorAll("main *")) {
    if (!(each instanceof SVGElement) && isCut(each)) faults.push(`${each.outerHTML.slice(0, 90)} is too wide`);
  }
  for (const svg of document.querySelectorAll("svg")) {
    const name = svg.getAttribute("aria-label");
    const marks = [...svg.querySelectorAll(".mark")].map((mark) => mark.getBBox());
    if (!marks.some(({ width, height }) => width + height > 0)) faults.push(`${name} is empty`);
    if (/NaN|undefined|Infinity/.test(svg.outerHTML)) faults.push(`${name} has places that are no numbers`);
    const { width, height } = svg.viewBox.baseVal;
    const texts = [...svg.querySelectorAll("text")].map((each) => [each.textContent, each.getBBox()]);
    texts.forEach(([text, box], index) => {
      if (box.x < -1 || box.y < -1 || box.x + box.width > width + 1 || box.y + box.height > height + 1) {
        faults.push(`${name}: "${text}" is cut off`);
      }
      for (const [other, its] of texts.slice(index + 1)) {
        const across = Math.min(box.x + box.width, its.x + its.width) - Math.max(box.x, its.x);
        const down = Math.min(box.y + box.height, its.y + its.height) - Math.max(box.y, its.y);
        if (across > 1 && down > 4) faults.push(`${name}: "${text}" and "${other}" overlap`);
      }
    });
  }
  return faults;
})()"""


class Browser:
    """One page that all tests use, one after the other."""

    def __init__(self, runner: asyncio.Runner, page: Page, folder: Path) -> None:
        self._runner = runner
        self._folder = folder
        self.page = page

    def run(self, action: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(action)

    def evaluate(self, expression: str) -> Any:
        return self.run(self.page.evaluate(expression))

    def open(self, result: Result, *, width: int = 1280, theme: str = "light") -> str:
        """Returns the URL of the result's page."""
        path = self._folder / "page.html"
        path.write_text(write_html(result), encoding="utf-8")
        self.page.errors.clear()
        self.page.requests.clear()
        self.run(self.page.show(path.as_uri(), width=width, theme=theme))
        return path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None, "these tests are skipped without it"
    with asyncio.Runner() as runner:
        opened = open_page(CHROMIUM)
        page = runner.run(opened.__aenter__())
        try:
            yield Browser(runner, page, tmp_path_factory.mktemp("page"))
        finally:
            runner.run(opened.__aexit__(None, None, None))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("name", RESULTS)
def test_a_page_shows_its_charts_without_errors_requests_or_overlaps(browser, name, width, theme):
    make, titles = RESULTS[name]

    url = browser.open(make(), width=width, theme=theme)

    assert browser.page.errors == []
    assert browser.page.requests == [url]
    assert browser.evaluate(GET_TITLES) == titles
    assert browser.evaluate(FIND_FAULTS) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("svg.querySelectorAll('.mark').forEach((each) => each.remove())", "Output is empty"),
        ("svg.querySelector('.mark').setAttribute('d', 'M0 NaN')", "Output has places that are no numbers"),
        ("svg.querySelector('text').setAttribute('x', -9)", 'Output: "0" is cut off'),
        ("svg.append(svg.querySelector('text').cloneNode(true))", 'Output: "0" and "0" overlap'),
        ("document.querySelector('h2').style.width = '2000px'", "the page is wider than the window"),
    ],
)
def test_faults_of_a_page_are_found(browser, change, fault):
    browser.open(make_result(2))

    browser.evaluate(f"{{ const svg = document.querySelector('#run svg'); {change}; }}")

    assert fault in browser.evaluate(FIND_FAULTS)


def test_choosing_a_load_shows_its_figures_and_its_charts(browser):
    browser.open(make_result(1, 8))
    drawn = browser.evaluate("document.querySelector('#distributions svg').outerHTML")

    browser.evaluate("document.querySelector('.chooser button').click()")

    assert browser.evaluate("document.querySelector('.level:not([hidden]) h2').textContent") == "1 stream"
    assert browser.evaluate("document.querySelectorAll('.level:not([hidden])').length") == 1
    assert browser.evaluate("document.querySelector('#distributions svg').outerHTML") != drawn
    assert browser.evaluate(FIND_FAULTS) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_has_the_colours_of_the_system_until_its_button_changes_them(browser, theme):
    get_colour = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(247, 247, 245)", "dark": "rgb(18, 21, 25)"}
    other = next(each for each in colours if each != theme)

    browser.open(make_result(2), theme=theme)
    first = browser.evaluate(get_colour)
    browser.evaluate("document.getElementById('theme').click()")

    assert (first, browser.evaluate(get_colour)) == (colours[theme], colours[other])


def test_arrow_keys_show_the_values_of_a_chart(browser):
    browser.open(make_result(8))

    browser.evaluate("document.querySelector('#run svg').focus()")
    browser.run(browser.page.settle())  # focus scrolls the chart into view, and scrolling hides the values
    browser.evaluate(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }))"
    )

    assert browser.evaluate("document.getElementById('tip').textContent").startswith("0 \u2013 1 s\ntokens/s ")
    assert browser.evaluate("document.getElementById('tip').hidden") is False


def test_names_and_texts_of_a_result_cannot_run_scripts(browser):
    attack = "</script><img src=x onerror='window.hasRun = true'><script>window.hasRun = true</script>"
    result = make_result(2, fingerprint={"model": {"name": attack}}, command=attack, notes=[attack])
    result.detail["levels"][0]["title"] = attack
    result.detail["levels"][0]["failure_texts"] = {"INTERNAL": attack}

    url = browser.open(result)

    assert browser.evaluate("document.querySelector('h1').textContent") == attack
    assert browser.evaluate("window.hasRun ?? false") is False
    assert (browser.page.errors, browser.page.requests) == ([], [url])


def test_the_policy_of_a_page_refuses_requests(browser):
    url = browser.open(make_result(2))

    browser.evaluate("fetch('http://127.0.0.1:9/').catch(() => {})")

    assert browser.page.requests == [url]
    assert any("Content Security Policy" in error for error in browser.page.errors)


def test_a_printed_page_is_light_and_has_no_buttons(browser):
    browser.open(make_result(8), theme="dark")

    browser.run(browser.page.call("Emulation.setEmulatedMedia", media="print"))

    assert browser.evaluate("getComputedStyle(document.body).color") == "rgb(27, 30, 34)"
    assert browser.evaluate("getComputedStyle(document.getElementById('theme')).display") == "none"
    assert browser.run(browser.page.print_pdf()).startswith(b"%PDF")
