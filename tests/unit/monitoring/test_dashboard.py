"""The dashboard is made from its description, is laid out as Grafana expects, and asks only for metrics that exist."""

from __future__ import annotations

import itertools
import re

from monitoring_files import FOLDER, ROOT, SERIES, find_selectors, list_panels, make_dashboard, read_dashboard
from tgis_server.frontend.metrics import SPECS


def test_the_dashboard_and_the_table_of_its_panels_are_up_to_date():
    page = (ROOT / "docs" / "operations.md").read_text()

    assert (FOLDER / "grafana-dashboard.json").read_text() == make_dashboard.dashboard_text(), "run `make docs`"
    assert page == make_dashboard.page(page), "run `make docs`"


def test_panels_have_ids_of_their_own_and_fill_the_grid_without_overlapping():
    panels = read_dashboard()["panels"]
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(24))


def test_every_query_has_an_id_in_its_panel_and_obeys_all_variables():
    names = [variable["name"] for variable in read_dashboard()["templating"]["list"]]

    for panel in list_panels():
        targets = panel["targets"]
        assert len({target["refId"] for target in targets}) == len(targets) > 0, panel["title"]
        for source, target in itertools.product((panel, *targets), targets):
            assert source["datasource"]["uid"] == "${datasource}"
            for selector in find_selectors(target["expr"]):
                assert re.findall(r'=~"\$(\w+)"', selector) == names[1:], selector


def test_panels_ask_only_for_metrics_of_the_server():
    asked = {
        selector.split("{")[0]
        for panel in list_panels()
        for t in panel["targets"]
        for selector in find_selectors(t["expr"])
    }

    assert asked - SERIES == set()


def test_the_dashboard_shows_every_counter_and_gauge_that_is_no_detail():
    details = {
        "tgi_request_input_count",
        "tgi_batch_inference_success",
        "tgi_batch_inference_failure",
        "tgi_batch_max_remaining_tokens",
        "tgi_batch_concatenation_count",
        "tgi_tokenize_request_input_count",
        "tgi_calls_unread",
        "tgi_startup_phase_bytes",
    }
    text = (FOLDER / "grafana-dashboard.json").read_text()

    hidden = {spec.name for spec in SPECS if spec.kind != "histogram" and spec.name not in text}
    assert hidden == details
