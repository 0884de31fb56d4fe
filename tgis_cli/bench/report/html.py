"""A result as one HTML page that needs nothing else: it contains tables, charts, their data, script and style.

The page cannot make requests: its policy allows no source but its own script and style, by their hashes. The charts are
drawn by ``assets/charts.js`` and ``assets/page.js`` from the JSON in the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict
from datetime import datetime
from html import escape
from importlib import resources
from string import Template

from tgis_cli.bench.load.detail import LoadDetail
from tgis_cli.bench.report.grids import find_detail
from tgis_cli.bench.report.page_parts import write_levels, write_remarks, write_setup, write_tables
from tgis_cli.bench.report.subject import describe_lengths, name_subject
from tgis_cli.bench.result import Result, drop_nonfinite
from tgis_server.words.control_characters import escape_controls

SCRIPTS = ("charts.js", "page.js")
# JSON may have these as escapes; as themselves they could end the script element or a line of JavaScript.
UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def write_html(result: Result) -> str:
    """The page of a result of any kind; only those of loads have charts."""
    detail = find_detail(result)
    script = "\n".join(read_asset(name) for name in SCRIPTS)
    style = read_asset("page.css")
    kind = f"tgis bench {result.kind}"
    name = escape_controls(name_subject(result) or kind)
    return Template(read_asset("page.html")).substitute(
        policy=make_policy(script, style),
        title=escape(f"{name}: {kind}"),
        style=style,
        script=script,
        eyebrow=escape(kind) if name != kind else "",
        name=escape(name).replace("/", "/<wbr>"),  # lines may break there
        meta=escape(", ".join(filter(None, (format_date(result.created_at), describe_lengths(result))))),
        remarks=write_remarks(result),
        tables=write_tables(result),
        charts=write_charts(detail) if detail else "",
        how=write_setup(result),
        data=embed(detail),
    )


def read_asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def make_policy(script: str, style: str) -> str:
    """
    Args:
        script: exactly as it stands between its tags.
    """
    return (
        f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def embed(detail: LoadDetail | None) -> str:
    """JSON that is safe inside a script element."""
    facts = drop_nonfinite(asdict(detail)) if detail else None
    return json.dumps(facts, allow_nan=False, separators=(",", ":")).translate(UNSAFE)


def write_charts(detail: LoadDetail) -> str:
    return Template(read_asset("charts.html")).substitute(levels=write_levels(detail.levels))


def format_date(created_at: str) -> str:
    """``14 March 2026, 15:09 UTC``; anything else stays as it is."""
    try:
        return f"{datetime.fromisoformat(created_at):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return created_at
