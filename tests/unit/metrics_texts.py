"""Scrapes of a server that has done what a test wants, from texts that the server's own metrics make."""

from __future__ import annotations

from tgis_cli.clients.metrics import Scrape, parse_scrape
from tgis_server.frontend.metrics import Metrics
from tgis_server.wire.messages import StepStats

STEP = StepStats(prefill_rows=1, decode_rows=3, prefill_tokens=30, cached_tokens=10, forward_s=0.03, used_blocks=25)


def make_metrics(startup_s: float = 2.0, num_blocks: int = 100) -> Metrics:
    """Of a server that took this time to start, which no other run of it does."""
    metrics = Metrics(max_sequence_length=128, max_new_tokens=64, max_batch_size=8)
    metrics.use_limits(max_sequence_length=128, max_new_tokens=64, num_blocks=num_blocks)
    metrics._gauge("tgi_startup_seconds").set(startup_s)
    return metrics


def scrape(metrics: Metrics, at_s: float = 0.0) -> Scrape:
    return parse_scrape(metrics.to_text().decode(), at_s)


def serve_one(metrics: Metrics, stats: StepStats = STEP) -> None:
    """A request of 40 tokens, 10 of them cached, that waits 0.1 s and has its first of two tokens after 0.4 s."""
    metrics.count_call("stream", 1)
    metrics.observe_validated([40], 2, 0.005)
    metrics.observe_queued(0.1)
    metrics.observe_first_token(0.4)
    metrics.observe_step(stats, processing_s=0.0)
    metrics.observe_further_tokens(0.05, 1)
    metrics.observe_answer(
        kind="stream", stop_reason="MAX_TOKENS", num_input=40, num_generated=2, total_s=0.5, inference_s=0.35
    )
