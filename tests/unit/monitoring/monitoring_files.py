"""What is in deployment/monitoring, the metrics that its queries read, and where Prometheus is."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from tgis_server.frontend.metrics import SPECS

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deployment" / "monitoring"
_spec = importlib.util.spec_from_file_location("make_dashboard", ROOT / "scripts" / "make_dashboard.py")
make_dashboard = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = make_dashboard  # dataclasses look up their module
_spec.loader.exec_module(make_dashboard)

CACHED = ROOT / ".cache" / "prometheus" / "usr" / "bin"  # where .ci/run unpacks it
PARTS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
SERIES = {spec.name + part for spec in SPECS for part in PARTS[spec.kind]}  # the names in /metrics
SELECTOR = re.compile(r"\b(?:(?:tgi|kube)_\w+|up\b)(?:\{[^}]*\})?")


def read_dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana-dashboard.json").read_text())


def read_rules() -> dict[str, Any]:
    """The ``spec`` of the PrometheusRule: what a rule file of Prometheus holds."""
    return yaml.safe_load((FOLDER / "prometheus-rule.yaml").read_text())["spec"]


def list_panels() -> list[dict[str, Any]]:
    """The panels with queries, by row."""
    return [panel for panel in read_dashboard()["panels"] if panel["type"] != "row"]


def list_alerts() -> list[dict[str, Any]]:
    return [rule for group in read_rules()["groups"] for rule in group["rules"]]


def find_selectors(expression: str) -> list[str]:
    """The metrics that an expression reads, with their matchers: ``tgi_request_failure_total{err="conc_limit"}``."""
    return SELECTOR.findall(expression)


def find_program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(CACHED))
