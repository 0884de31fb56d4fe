"""A real Prometheus reads what the dashboard and the alerts ask for, and each alert fires when it should.

The server is a rehearsal that gets requests of every kind, among them some that fail.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from alert_cases import CASES, Case, labels_of
from monitoring_files import find_program, find_selectors, list_alerts, list_panels, read_rules
from shards import wait_until
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

Start = Callable[..., Any]  # starts a Server of conftest.py
PROMETHEUS, PROMTOOL = find_program("prometheus"), find_program("promtool")
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not (PROMETHEUS and PROMTOOL), reason="needs prometheus and promtool"),
]


@pytest.fixture(scope="module")
def rule_file() -> Iterator[Path]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(read_rules(), file)
        yield Path(file.name)


# The alerts, on series that promtool plays


def test_the_rules_are_well_formed(rule_file: Path):
    checked = subprocess.run([PROMTOOL, "check", "rules", rule_file], capture_output=True, text=True)

    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.situation}")
def test_an_alert_fires_only_when_it_should(case: Case, rule_file: Path, tmp_path: Path):
    query = f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}'
    expected = [{"labels": labels_of(case.alert), "value": 1}] if case.fires else []
    test = {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": case.at, "exp_samples": expected}],
    }
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rule_file)], "evaluation_interval": "30s", "tests": [test]}))

    tried = subprocess.run([PROMTOOL, "test", "rules", file], capture_output=True, text=True)

    assert tried.returncode == 0, tried.stdout + tried.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    assert {(case.alert, case.fires) for case in CASES} == set(
        itertools.product((alert["alert"] for alert in list_alerts()), (True, False))
    )


# The queries, on a server under load


@dataclass
class Prometheus:
    """A Prometheus that scrapes one server every half second."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[float]:
        """The values of the series; fails if the expression does not parse."""
        return [float(series["value"][1]) for series in self.get("/api/v1/query", query=expression)["result"]]

    def is_ready(self) -> bool:
        try:
            return bool(self.get("/api/v1/status/runtimeinfo"))
        except urllib.error.URLError:
            return False


@pytest.fixture(scope="module")
def prometheus(start_shared: Start, rule_file: Path) -> Iterator[Prometheus]:
    """Prometheus beside a rehearsal under load. Its first prefill runs out of memory."""
    with tempfile.TemporaryDirectory(prefix="t-") as name, contextlib.ExitStack() as stack:
        words = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=localhost"
        words += " -addext subjectAltName=DNS:localhost"
        subprocess.run(words.split(), cwd=name, check=True, capture_output=True)
        server = start_shared(
            *("--rehearse", "--rehearse-step-ms", "5", "--fault", "shard0:oom@step1", "--host", "127.0.0.1"),
            *("--kv-block-size", "4", "--rehearse-kv-blocks", "40", "--max-concurrent-requests", "8"),
            *("--tls-cert-path", f"{name}/cert.pem", "--tls-key-path", f"{name}/key.pem", "--send-timeout", "1"),
        ).wait_until_ready()
        target = server.facts["http"].removeprefix("http://")
        load = RequestsOfAllKinds(server.address, target, Path(name, "cert.pem").read_bytes())
        stack.enter_context(load.running())
        yield stack.enter_context(scraping(target, rule_file, Path(name)))


@contextlib.contextmanager
def scraping(target: str, rule_file: Path, directory: Path) -> Iterator[Prometheus]:
    labels = {"namespace": "prod", "pod": "granite-0"}
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(rule_file)],
        "scrape_configs": [{"job_name": "granite", "static_configs": [{"targets": [target], "labels": labels}]}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = (f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={directory}/data")
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([PROMETHEUS, *files, f"--web.listen-address={address}"], stderr=log)
    try:
        prometheus = Prometheus(f"http://{address}")
        wait_until(prometheus.is_ready, "Prometheus to be ready")
        yield prometheus
    finally:
        process.kill()
        process.wait()


@dataclass
class RequestsOfAllKinds:
    """A load with answers, refusals, failures, preemptions, prefixes that repeat, and a client that does not read."""

    address: str
    http: str
    certificate: bytes

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        stopped = threading.Event()
        threads = [threading.Thread(target=self._repeat, args=(work, stopped)) for work in (self._generate, self._err)]
        host, port = self.http.split(":")
        with socket.socket() as unread:
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            unread.connect((host, int(port)))
            unread.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                stopped.set()
                for thread in threads:
                    thread.join()

    def _repeat(self, work: Callable[[GenerationServiceStub], None], stopped: threading.Event) -> None:
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.certificate), options) as channel:
            while not stopped.is_set():
                work(GenerationServiceStub(channel))

    def _generate(self, stub: GenerationServiceStub) -> None:
        with contextlib.suppress(grpc.RpcError):
            list(
                stub.GenerateStream(pb.SingleGenerationRequest(request={"text": "Anna runs"}, params=new(9)), timeout=9)
            )
            for texts in (["Ben"], ["Once upon a time there was a girl"] * 2, ["One", "Two", "Three"]):
                inputs = [pb.GenerationRequest(text=text) for text in texts]
                stub.Generate(pb.BatchedGenerationRequest(requests=inputs, params=new(60)), timeout=9)
            stub.Tokenize(pb.BatchedTokenizeRequest(requests=[pb.TokenizeRequest(text="Anna")]), timeout=9)

    def _err(self, stub: GenerationServiceStub) -> None:
        """Calls that are refused: too many inputs, and an invalid parameter."""
        for num_inputs, num_tokens in ((9, 1), (1, 10**6)):
            inputs = [pb.GenerationRequest(text="a")] * num_inputs
            with contextlib.suppress(grpc.RpcError):
                stub.Generate(pb.BatchedGenerationRequest(requests=inputs, params=new(num_tokens)), timeout=9)
        threading.Event().wait(0.1)  # a few refusals each second are enough


def new(num_tokens: int) -> pb.Parameters:
    return pb.Parameters(stopping=pb.StoppingCriteria(max_new_tokens=num_tokens))


QUERIES = {
    f"{panel['title']}: {target['legendFormat']}": target["expr"]
    for panel in list_panels()
    for target in panel["targets"]
}


def choose_all(expression: str) -> str:
    """What Grafana sends if every variable is at its default."""
    for name, value in {"namespace": ".*", "job": ".*", "pod": ".*", "__rate_interval": "5s"}.items():
        expression = expression.replace(f"${name}", value)
    return expression


def test_every_panel_shows_numbers_of_a_server_under_load(prometheus: Prometheus):
    missing = dict(QUERIES)

    def ask_again() -> bool:
        for title, expression in list(missing.items()):
            values = prometheus.query(choose_all(expression))
            if values and all(map(math.isfinite, values)):
                del missing[title]
        return not missing

    with contextlib.suppress(AssertionError):
        wait_until(ask_again, "every panel")
    assert missing == {}


def test_no_panel_is_empty_for_want_of_events(prometheus: Prometheus):
    """The load has to cause what the panels count, otherwise their numbers would be zeros of other series."""
    for metric in ("tgi_preemption_count_total", "tgi_prefix_cache_hit_tokens_total", "tgi_abort_count_total"):
        wait_until(lambda metric=metric: any(prometheus.query(metric)), metric)


@pytest.mark.parametrize("alert", list_alerts(), ids=lambda alert: alert["alert"])
def test_every_metric_that_an_alert_reads_has_series(alert: dict[str, Any], prometheus: Prometheus):
    selectors = [one for one in find_selectors(alert["expr"]) if not one.startswith("kube_")]

    for selector in selectors:
        wait_until(lambda selector=selector: prometheus.query(selector), selector)
    assert selectors


def test_prometheus_evaluates_every_rule(prometheus: Prometheus):
    def list_healths() -> dict[str, str]:
        groups = prometheus.get("/api/v1/rules")["groups"]
        return {rule["name"]: rule["health"] + rule.get("lastError", "") for group in groups for rule in group["rules"]}

    wait_until(lambda: "unknown" not in list_healths().values(), "an evaluation of every rule")
    assert list_healths() == dict.fromkeys((alert["alert"] for alert in list_alerts()), "ok")
