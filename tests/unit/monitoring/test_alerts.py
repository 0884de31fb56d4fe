"""Every alert says what it means, leads to its section of the runbook, and reads metrics that exist."""

from __future__ import annotations

import json
import re

import pytest

from cluster_objects import check_objects, needs_kubectl, render
from monitoring_files import FOLDER, ROOT, SERIES, find_selectors, list_alerts, read_dashboard, read_rules

ALERTS = {alert["alert"]: alert for alert in list_alerts()}


def test_alerts_have_different_names():
    assert len(ALERTS) == len(list_alerts())


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_wakes_a_person_and_says_what_to_do(name: str):
    alert = ALERTS[name]
    page, anchor = alert["annotations"]["runbook_url"].split("#")

    assert alert["labels"] == {"severity": "critical"}
    assert sorted(alert["annotations"]) == ["description", "runbook_url", "summary"]
    assert anchor == name.lower()
    assert re.search(f"^## {name}$", (ROOT / page).read_text(), re.MULTILINE)


def test_the_command_that_makes_links_of_the_runbook_reaches_every_alert():
    text = (FOLDER / "prometheus-rule.yaml").read_text()

    assert "s|runbook_url: docs/|" in text
    assert text.count("\n        runbook_url: docs/") == len(ALERTS)


def test_the_runbook_has_no_section_for_an_alert_that_does_not_exist():
    sections = re.findall(r"^## (Tgis\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)

    assert sorted(sections) == sorted(ALERTS)


def test_only_the_group_that_is_named_after_kube_state_metrics_needs_it():
    read = {
        group["name"]: {selector.split("{")[0] for rule in group["rules"] for selector in find_selectors(rule["expr"])}
        for group in read_rules()["groups"]
    }

    assert read["tgis"] - SERIES == {"up"}
    assert {name for name in read["tgis-kube-state-metrics"] - SERIES if not name.startswith("kube_")} == {"up"}


@needs_kubectl
def test_a_cluster_takes_the_alerts_and_grafanas_sidecar_finds_the_dashboard():
    objects = render(FOLDER)
    check_objects(objects)
    by_kind = {obj["kind"]: obj for obj in objects}

    assert by_kind["PrometheusRule"]["spec"] == read_rules()
    assert by_kind["ConfigMap"]["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(by_kind["ConfigMap"]["data"]["tgis.json"]) == read_dashboard()
