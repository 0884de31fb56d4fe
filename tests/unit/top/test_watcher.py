"""What `tgis top` knows of a server that serves, starts, restarts and goes away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from metrics_texts import make_metrics, scrape, serve_one
from tgis_cli.clients.address import HTTP, Address
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.metrics import Scrape
from tgis_cli.clients.metrics_source import MetricsSource
from tgis_cli.top.glance import Glance
from tgis_cli.top.processes import Processes
from tgis_cli.top.watcher import Watcher
from tgis_server.errors import Unavailable
from tgis_server.wire.messages import StepStats

ADDRESS = Address("h", 3000, is_tls=False, source="--url", protocol=HTTP)
LIVE = {"status": "serving", "model": "org/name", "mode": "", "grpc_port": 8033, "calls_in_flight": 2, "up_s": 7.5}


class PlayedSource(MetricsSource):
    """Answers with what comes next; a text: why there are no metrics; ``None``: the server is gone."""

    __slots__ = ("answers", "facts")

    def __init__(self, answers: Sequence[Scrape | str | None], facts: dict[str, Any]) -> None:
        super().__init__(ADDRESS, None)
        object.__setattr__(self, "answers", list(answers))
        object.__setattr__(self, "facts", facts)

    def scrape(self) -> Scrape:
        answer = self.answers.pop(0)
        assert answer is not None, "the probe comes first"
        if isinstance(answer, str):
            raise Unavailable(answer)
        return answer

    def read_health(self, probe: str) -> dict[str, Any]:
        if self.answers[0] is None:
            self.answers.pop(0)
            raise Unavailable("No server at h:3000.")
        return {"error": "The model is still loading."} if probe == "ready" else dict(self.facts)


def look(*answers: Scrape | str | None, facts: dict[str, Any] = LIVE) -> list[Glance]:
    watcher = Watcher(Connection(), PlayedSource(answers, facts), Processes(None))
    return [watcher.look() for _ in answers]


def test_two_looks_give_rates_and_latencies():
    metrics = make_metrics()
    first = scrape(metrics, 10.0)
    serve_one(metrics)
    serve_one(metrics, StepStats(decode_rows=2, forward_s=0.05, num_running=2, num_waiting=1, used_blocks=50))

    glance = look(first, scrape(metrics, 12.0))[-1]

    assert (glance.model, glance.state, glance.reason, glance.up_s) == ("org/name", "ready", "", 7.5)
    assert (glance.requests_per_s, glance.output_tokens_per_s, glance.prompt_tokens_per_s) == (1.0, 2.0, 15.0)
    assert (glance.running, glance.waiting, glance.kv_share, glance.window_s) == (2, 1, 0.5, 2.0)
    assert (glance.rows_per_step, glance.step_s) == (3.0, pytest.approx(0.04))
    assert (glance.first_token.mean_s, glance.queue.mean_s) == (pytest.approx(0.4), pytest.approx(0.1))
    assert 0.3 < (glance.first_token.p50_s or 0) < 0.6


def test_the_first_look_has_no_rates():
    glance = look(scrape(make_metrics()))[0]

    assert (glance.running, glance.requests_per_s, glance.first_token.p50_s, glance.history) == (0, None, None, ())


def test_latencies_are_of_the_last_minute_and_rates_of_the_last_seconds():
    metrics = make_metrics()
    scrapes = [scrape(metrics, 0.0)]
    for second in range(1, 101):
        metrics.observe_first_token(10.0 if second < 30 else 0.1)
        metrics.count_call("stream", 4 if second > 95 else 1)
        scrapes.append(scrape(metrics, float(second)))

    glance = look(*scrapes)[-1]

    assert glance.window_s == 60
    assert (glance.first_token.p99_s or 9) < 0.2
    assert glance.requests_per_s == 1.0
    assert len(glance.history) == 100


def test_a_server_that_does_not_answer_is_waited_for():
    metrics = make_metrics()
    before, gone, after = look(scrape(metrics, 1.0), None, scrape(metrics, 3.0))

    assert (gone.state, gone.reason, gone.model) == ("no answer", "No server at h:3000.", "org/name")
    assert gone.running is gone.requests_per_s is gone.first_token.p50_s is None
    assert (before.state, after.state, after.restarted_at) == ("ready", "ready", None)
    assert [point.requests_per_s for point in after.history] == [None, 0.0]


def test_counters_that_begin_again_are_a_restart_and_no_negative_rates():
    metrics, again = make_metrics(), make_metrics(startup_s=3.0)
    first = scrape(metrics, 0.0)
    serve_one(metrics)
    looks = look(first, scrape(metrics, 1.0), scrape(again, 2.0), scrape(again, 3.0))

    assert [glance.requests_per_s for glance in looks] == [None, 1.0, None, 0.0]
    assert [glance.restarted_at is not None for glance in looks] == [False, False, True, True]


def test_a_server_that_is_not_ready_says_why():
    glance = look(scrape(make_metrics()), facts=LIVE | {"status": "starting"})[0]

    assert (glance.state, glance.reason) == ("starting", "The model is still loading.")


def test_a_ready_server_whose_metrics_cannot_be_read_says_why():
    failed, after = look("No answer from h:3000 within 2 s.", scrape(make_metrics()))

    assert (failed.state, failed.reason, failed.running) == ("ready", "No answer from h:3000 within 2 s.", None)
    assert (after.state, after.reason, after.running) == ("ready", "", 0)


def test_a_failed_server_says_why():
    glance = look(scrape(make_metrics()), facts={"error": "Shard 0 no longer answers."})[0]

    assert (glance.state, glance.reason) == ("failed", "Shard 0 no longer answers.")


def test_intervals_longer_than_the_minute_still_have_rates():
    metrics = make_metrics()
    first = scrape(metrics, 0.0)
    serve_one(metrics)

    glance = look(first, scrape(metrics, 100.0))[-1]

    assert (glance.requests_per_s, glance.window_s) == (0.01, 100.0)
