"""Write deployment/monitoring/grafana-dashboard.json and the table of its panels in docs/operations.md.

Both come from ``ROWS``. A test checks that they are up to date and that every query finds series.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgis_server.frontend.transport.patience import MAX_BYTES_HELD
from tgis_server.words.sizes import format_bytes

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "deployment" / "monitoring" / "grafana-dashboard.json"
PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- panels: made by `make docs` -->\n", "<!-- end of panels -->\n"

NUM_COLUMNS = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = 'namespace=~"$namespace",job=~"$job",pod=~"$pod"'  # outside Kubernetes these labels are missing: .* matches
EACH = "namespace, job, pod, instance"
REPLICA = "{{pod}} {{instance}}"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: what it shows, in Grafana's unit, and its queries by legend."""

    title: str
    shows: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8


def stat(title: str, shows: str, unit: str, expr: str) -> Panel:
    """One number, for all chosen replicas together."""
    return Panel(title, shows, unit, {title.lower(): expr}, "stat", 3)


def select(metric: str, *matchers: str) -> str:
    return f"{metric}{{{','.join((CHOSEN, *matchers))}}}"


def rate(metric: str, *matchers: str) -> str:
    return f"rate({select(metric, *matchers)}[$__rate_interval])"


def total(metric: str, *matchers: str) -> str:
    """The rate of a counter, summed over all chosen replicas."""
    return f"sum({rate(metric, *matchers)})"


def by(labels: str, metric: str) -> str:
    return f"sum by ({labels}) ({rate(metric)})"


def each(metric: str) -> str:
    """A gauge of each replica."""
    return f"sum by ({EACH}) ({select(metric)})"


def quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, sum by (le) ({rate(f'{metric}_bucket')}))"


def quantiles(metric: str) -> dict[str, str]:
    return {f"p{share * 100:g}": quantile(share, metric) for share in (0.5, 0.95, 0.99)}


def ratio(part: str, whole: str) -> str:
    """A share that is 0 rather than missing when nothing happens."""
    return f"({part}) / ({whole} > 0) or vector(0)"


TIME_TO_FIRST = "tgi_time_to_first_token_duration"
CALLS = total("tgi_request_count_total")
NEW_TOKENS = f"{total(f'{TIME_TO_FIRST}_count')} + {total('tgi_inter_token_duration_count')}"
FAILED = total("tgi_request_failure_total", 'err=~"generate|unknown"')
REFUSED = total("tgi_request_failure_total", 'err="conc_limit"')
FRONTEND_STARTS = select("tgi_process_start_time_seconds", 'process="frontend"')

ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": (
        stat("Ready", "Replicas that serve.", "short", f"sum({select('tgi_ready')})"),
        stat("Calls", "Generation calls per second.", "reqps", CALLS),
        stat("Failed", "Share of the calls that the server failed to answer.", "percentunit", ratio(FAILED, CALLS)),
        stat("Refused", "Share of the calls refused because of overload.", "percentunit", ratio(REFUSED, CALLS)),
        stat("Tokens", "Generated tokens per second.", "short", NEW_TOKENS),
        stat("First token", "95th percentile of the time to the first token.", "s", quantile(0.95, TIME_TO_FIRST)),
        stat("Waiting", "Sequences in the queue.", "short", f"sum({select('tgi_queue_size')})"),
        stat("Uptime", "Time since the youngest front-end started.", "s", f"time() - max({FRONTEND_STARTS})"),
        Panel(
            "Servers",
            "Model, version and mode of each replica.",
            "short",
            {"": f"sum by ({EACH}, model, version, mode) ({select('tgi_server_info')})"},
            "table",
            NUM_COLUMNS,
        ),
    ),
    "Traffic": (
        Panel(
            "Calls by kind",
            "Generation calls per second: one input, several inputs, streams.",
            "reqps",
            {"{{kind}}": by("kind", "tgi_request_count_total")},
        ),
        Panel(
            "Failures",
            "Failed calls per second by cause; the causes are explained in metrics.md.",
            "reqps",
            {"{{err}}": by("err", "tgi_request_failure_total")},
        ),
        Panel(
            "Answers",
            "Answered inputs per second by stop reason.",
            "reqps",
            {"{{stop_reason}}": by("stop_reason", "tgi_request_success_total")},
        ),
        Panel(
            "Tokens per second",
            "Prompt tokens computed, prompt tokens found in the prefix cache, and tokens generated.",
            "short",
            {
                "computed": total("tgi_batch_next_tokens_sum"),
                "from the cache": total("tgi_prefix_cache_hit_tokens_total"),
                "generated": NEW_TOKENS,
            },
        ),
        Panel(
            "Inputs in progress",
            "Inputs in progress, and their limit (--max-concurrent-requests); calls beyond it are refused.",
            "short",
            {f"held {REPLICA}": each("tgi_permits_held"), f"limit {REPLICA}": each("tgi_max_concurrent_requests")},
        ),
        Panel(
            "Input tokens",
            "Length of accepted inputs after truncation.",
            "short",
            quantiles("tgi_request_input_length"),
        ),
        Panel("Output tokens", "Length of outputs.", "short", quantiles("tgi_request_generated_tokens")),
        Panel(
            "Tokenize calls",
            "Tokenize calls per second.",
            "reqps",
            {"calls": total("tgi_tokenize_request_count_total")},
        ),
        Panel(
            "Ended clients",
            "Calls and connections per second that were closed because the client was too slow or too greedy.",
            "reqps",
            {"{{reason}}": by("reason", "tgi_abort_count_total")},
        ),
    ),
    "Latency": (
        Panel("Whole answer", "From call to answer.", "s", quantiles("tgi_request_duration")),
        Panel(
            "First token",
            "From submission to the first token: queue and prefill.",
            "s",
            quantiles(TIME_TO_FIRST),
        ),
        Panel("Between tokens", "Between two tokens of one output.", "s", quantiles("tgi_inter_token_duration")),
        Panel("Queue", "From submission to the first step.", "s", quantiles("tgi_request_queue_duration")),
        Panel("Inference", "From the first step to the last token.", "s", quantiles("tgi_request_inference_duration")),
        Panel(
            "Time per token",
            "Inference time of a request divided by its tokens.",
            "s",
            quantiles("tgi_request_mean_time_per_token_duration"),
        ),
        Panel("Validation", "Checking parameters and tokenizing.", "s", quantiles("tgi_request_validation_duration")),
        Panel("Tokenize", "Tokenize calls.", "s", quantiles("tgi_tokenize_request_duration")),
    ),
    "Queue and batch": (
        Panel("Queue length", "Sequences that wait for a slot.", "short", {REPLICA: each("tgi_queue_size")}),
        Panel(
            "Running sequences",
            "Sequences in the batch, and their limit (--max-batch-size).",
            "short",
            {f"running {REPLICA}": each("tgi_batch_current_size"), f"limit {REPLICA}": each("tgi_max_batch_size")},
        ),
        Panel(
            "Sequences per step",
            "Mean over steps that prefill and steps that decode.",
            "short",
            {
                "{{method}}": f"{by('method', 'tgi_batch_inference_batch_size_sum')} / "
                f"{by('method', 'tgi_batch_inference_batch_size_count')}"
            },
        ),
        Panel("Step", "Time that the model and sampling take in a step.", "s", quantiles("tgi_step_device_duration")),
        Panel("Scheduler", "Time to plan a step.", "s", quantiles("tgi_step_scheduler_duration")),
        Panel(
            "Steps per second",
            "Steps that prefill and steps that decode; one that does both counts twice.",
            "short",
            {"{{method}}": by("method", "tgi_batch_inference_count_total")},
        ),
    ),
    "KV cache": (
        Panel(
            "Blocks in use",
            "Share of the KV blocks that running sequences use; at 100% sequences wait or are preempted.",
            "percentunit",
            {REPLICA: f"{each('tgi_kv_blocks_used')} / {each('tgi_kv_blocks_total')}"},
        ),
        Panel(
            "Blocks in the prefix cache",
            "Share of the KV blocks whose content can be reused.",
            "percentunit",
            {REPLICA: f"{each('tgi_prefix_cache_blocks')} / {each('tgi_kv_blocks_total')}"},
        ),
        Panel(
            "Prefix cache hits",
            "Share of the prompt tokens that were found in the prefix cache.",
            "percentunit",
            {
                "hits": ratio(
                    total("tgi_prefix_cache_hit_tokens_total"),
                    f"({total('tgi_prefix_cache_hit_tokens_total')} + {total('tgi_batch_next_tokens_sum')})",
                )
            },
        ),
        Panel(
            "Preemptions",
            "Sequences per second that were preempted because KV blocks ran out; they are recomputed later.",
            "short",
            {REPLICA: by(EACH, "tgi_preemption_count_total")},
        ),
        Panel(
            "Tokens of running sequences",
            "Prompt and generated tokens of the batch.",
            "short",
            {REPLICA: each("tgi_batch_input_tokens")},
        ),
    ),
    "Processes": (
        Panel(
            "Memory",
            "Resident memory of each process; shared pages count in every process.",
            "bytes",
            {"{{process}} " + REPLICA: f"sum by ({EACH}, process) ({select('tgi_process_resident_memory_bytes')})"},
        ),
        Panel(
            "CPU",
            "CPUs that each process uses.",
            "short",
            {"{{process}} " + REPLICA: by(f"{EACH}, process", "tgi_process_cpu_seconds_total")},
        ),
        Panel(
            "Bytes of calls",
            "Bytes of requests in progress and of answers being sent; at "
            f"{format_bytes(MAX_BYTES_HELD)} calls wait or are refused.",
            "bytes",
            {REPLICA: each("tgi_bytes_held")},
        ),
        Panel(
            "Calls",
            "Calls of any kind that have not been answered yet.",
            "short",
            {REPLICA: each("tgi_calls_in_flight")},
        ),
        Panel("Draining", "1 while a replica drains.", "short", {REPLICA: each("tgi_draining")}),
        Panel(
            "Certificate",
            "Time until the TLS certificate in use expires; empty without TLS.",
            "s",
            {REPLICA: f"min by ({EACH}) ({select('tgi_tls_certificate_expiry_timestamp_seconds')}) - time()"},
        ),
    ),
    "Start-up": (
        Panel(
            "Start-up",
            "From the start of the launcher until requests were served.",
            "s",
            {REPLICA: each("tgi_startup_seconds")},
        ),
        Panel(
            "Phases",
            "The longest that each phase of the latest start took in a replica.",
            "s",
            {"{{process}}: {{phase}}": f"max by (process, phase) ({select('tgi_startup_phase_seconds')})"},
            "bargauge",
        ),
        Panel(
            "Restarts",
            "How often the front-end restarted within an hour.",
            "short",
            {REPLICA: f"sum by ({EACH}) (changes({FRONTEND_STARTS}[1h]))"},
        ),
    ),
}


# JSON


def dashboard() -> dict[str, Any]:
    return {
        "uid": "tgis",
        "title": "TGIS",
        "tags": ["tgis"],
        "editable": True,
        "schemaVersion": 39,
        "version": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": list(variables())},
        "annotations": {"list": []},
        "panels": list(panels()),
    }


def variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    chosen: list[str] = []
    for name in ("namespace", "job", "pod"):
        query = f"label_values(tgi_server_info{{{','.join(chosen)}}}, {name})"
        yield {
            "name": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }
        chosen.append(f'{name}=~"${name}"')


def panels() -> Iterator[dict[str, Any]]:
    """Rows of panels, from left to right and from top to bottom."""
    panel_id, y = 0, 0
    for title, row in ROWS.items():
        panel_id += 1
        position = {"x": 0, "y": y, "w": NUM_COLUMNS, "h": 1}
        yield {"id": panel_id, "type": "row", "title": title, "collapsed": False, "gridPos": position, "panels": []}
        x, y, height = 0, y + 1, 0
        for panel in row:
            if x + panel.width > NUM_COLUMNS:
                x, y, height = 0, y + height, 0
            panel_id += 1
            own_height = HEIGHT // 2 if panel.kind == "stat" else HEIGHT
            yield render(panel, panel_id, {"x": x, "y": y, "w": panel.width, "h": own_height})
            x, height = x + panel.width, max(height, own_height)
        y += height


def render(panel: Panel, panel_id: int, position: dict[str, int]) -> dict[str, Any]:
    is_table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": expr,
            "legendFormat": legend,
            **({"format": "table", "instant": True} if is_table else {}),
        }
        for number, (legend, expr) in enumerate(panel.queries.items())
    ]
    made: dict[str, Any] = {
        "id": panel_id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.shows,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, **({} if is_table else {"min": 0})}, "overrides": []},
        "targets": targets,
    }
    if is_table:
        hidden = {"Time": True, "Value": True}
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made


# The page


def table() -> str:
    lines = ["| row | panel | shows |", "|---|---|---|"]
    lines += [f"| {row} | {panel.title} | {panel.shows} |" for row, made in ROWS.items() for panel in made]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the current table in place of the old one."""
    return re.sub(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", lambda _: f"\n{table()}\n", text, flags=re.DOTALL)


def dashboard_text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    DASHBOARD.write_text(dashboard_text())
    PAGE.write_text(page(PAGE.read_text()))
    print(DASHBOARD, PAGE, sep="\n")


if __name__ == "__main__":
    main()
