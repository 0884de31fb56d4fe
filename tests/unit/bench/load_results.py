"""Results of loads as a server of two cores would give them: made from a simple queue, with noise from a fixed seed."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np

from tgis_cli.bench.load.detail import Distribution, Level, LoadDetail, Series, Window
from tgis_cli.bench.result import Estimate, Figure, Result

PERCENTS = ("50", "90", "95", "99", "99.9")
LEVEL_S = 40.0
SERVER_ROWS = 24  # more streams than these wait in the queue
PREFILL_S = 0.045
FINGERPRINT = {
    "versions": {"tgis": "0.1.0", "python": "3.11.2", "torch": "2.11.0"},
    "commit": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c+",
    "system": {"kernel": "6.8.0-40-generic", "in_container": True, "steal_share": 0.0214, "load_average": 1.42},
    "cpu": {"model": "Intel Xeon Platinum 8581C", "flags": ["avx2", "amx_bf16"], "cores": 2, "quota": None},
    "memory": {
        "free_bytes": 6 << 30,
        "transparent_huge_pages": "madvise",
        "bandwidth": {"one_thread": 1.21e10, "all_threads": 2.14e10},
    },
    "gpus": [],
    "model": {"name": "HuggingFaceTB/SmolLM2-135M", "parameters": 134_515_008, "dtype": "float32"},
    "server": {"options": {"max-batch-size": SERVER_ROWS, "num-shard": 1}},
}


def make_result(
    *concurrencies: int,
    has_server: bool = True,
    is_streamed: bool = True,
    fails: float = 0.0,
    most: int = 9999,
    **facts: Any,
) -> Result:
    """
    Args:
        concurrencies: one level each; by default three.
        fails: the share of calls that fail.
        most: calls in each level.
        facts: those of the result.
    """
    levels = [
        make_level(number, has_server=has_server, is_streamed=is_streamed, fails=fails, most=most)
        for number in concurrencies or (1, 8, 32)
    ]
    detail = LoadDetail(levels, knee=levels[1].title if len(levels) > 2 else None)
    told: dict[str, Any] = {
        "kind": "load",
        "created_at": "2026-03-14T15:09:26Z",
        "command": "tgis bench load --concurrency 1,8,32 --input-tokens 128 --output-tokens 64",
        "options": {"concurrency": list(concurrencies), "duration": LEVEL_S},
        "shape": {"input_tokens": "128", "output_tokens": "64", "is_streamed": is_streamed},
        "fingerprint": FINGERPRINT,
        "figures": [figure for level in levels for figure in make_figures(level)],
        "detail": asdict(detail),
    }
    return Result(**told | facts)


def make_engine_result() -> Result:
    """Of a kind that has figures and no details."""
    costs = (("step_s", "s", 0.0123), ("tokens_per_s", "tokens/s", 81.2), ("limit_share", "", 0.0123))
    figures = [
        Figure(f"decode, {rows} rows at 128", name, unit, "", estimate(value * rows), 5)
        for rows in (1, 8, 32)
        for name, unit, value in costs
    ]
    return Result(
        kind="engine",
        created_at="2026-03-14T15:09:26+00:00",
        command="tgis bench engine gpt2",
        options={},
        shape={"rows": [1, 8, 32]},
        fingerprint=FINGERPRINT,
        figures=figures,
    )


@cache
def make_level(concurrency: int, *, has_server: bool, is_streamed: bool, fails: float, most: int) -> Level:
    rng = np.random.default_rng(concurrency)
    title = f"{concurrency} stream{'s' if concurrency > 1 else ''}"
    if not is_streamed:
        title = title.replace("stream", "call")
    calls, gaps = make_calls(concurrency, rng)
    calls, gaps = calls[:most], gaps[: 63 * most]
    failed = rng.random(len(calls)) < fails
    good = calls[~failed]
    samples = {"e2e": good[:, 3] - good[:, 1]}
    if is_streamed:
        samples |= {
            "ttft": good[:, 2] - good[:, 1],
            "itl": gaps if len(good) else gaps[:0],
            "tpot": (good[:, 3] - good[:, 2]) / 63,
        }
    rate = len(good) / LEVEL_S
    failures = {"RESOURCE_EXHAUSTED": int(failed.sum())} if failed.any() else {}
    waits = float(np.mean(good[:, 2] - good[:, 1])) if len(good) else 0.0
    queue_s = max(0.0, waits - 1.6 * PREFILL_S)
    return Level(
        title=title,
        concurrency=concurrency,
        rate=None,
        is_streamed=is_streamed,
        whole=Window(0.0, LEVEL_S + 1.5),
        steady=Window(2.0, LEVEL_S - 1.0),
        sent=len(calls),
        completed=len(good),
        failed=int(failed.sum()),
        failures=failures,
        failure_texts=dict.fromkeys(failures, "Model is overloaded: <b>no</b> free permits."),
        wrong_counts=0,
        is_cut=False,
        is_saturated=False,
        requests_per_s=estimate(rate),
        output_tokens_per_s=estimate(64 * rate),
        total_tokens_per_s=estimate(192 * rate),
        whole_output_tokens_per_s=60 * rate,
        latencies={name: make_distribution(values) for name, values in samples.items() if len(values)},
        num_judged=0,
        num_good=0,
        generator={
            "workers": 1,
            "send_lag_p99_s": 0.0004,
            "loop_lag_p99_s": 0.0009,
            "cpu_share": 0.04 * rate,
            "cpu_us_per_token": 17.3,
        },
        server={
            "rows_per_step": min(concurrency, SERVER_ROWS) * 0.95,
            "step_s": 0.0171,
            "waiting_max": max(0, concurrency - SERVER_ROWS),
            "kv_used_mean_share": 0.41,
            "kv_used_max_share": 0.55,
            "prefix_hit_share": 0.0,
            "preemptions": 2,
        }
        if has_server
        else None,
        first_token_split=(
            {"client": 0.0006, "queue": queue_s, "prefill": PREFILL_S, "rest": max(0.001, waits - queue_s - PREFILL_S)}
            if has_server and is_streamed and len(good)
            else None
        ),
        series=make_series(good, failed, calls, concurrency, rng, has_server=has_server, is_streamed=is_streamed),
        waterfall=make_waterfall(calls, failed, is_streamed=is_streamed),
    )


def make_calls(concurrency: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(due, sent, first, end) of each call, and the gaps of all."""
    rows = min(concurrency, SERVER_ROWS)
    step_s = 0.0085 + 0.0011 * rows
    free_at = np.sort(rng.uniform(0, 0.4, concurrency))
    calls, gaps = [], []
    while (due := free_at.min()) < LEVEL_S:
        slot = int(free_at.argmin())
        sent = due + rng.exponential(0.00008)
        waits = max(0, concurrency - rows) * step_s * 64 / rows * rng.uniform(0.7, 1.2)
        first = sent + waits + PREFILL_S * rng.lognormal(0.1, 0.25) * (1 + 0.04 * rows)
        own = step_s * rng.lognormal(0, 0.12, 63) + (rng.random(63) < 0.03 * rows / 8) * PREFILL_S
        free_at[slot] = first + own.sum()
        calls.append((due, sent, first, free_at[slot]))
        gaps.append(own)
    return np.array(calls), np.concatenate(gaps)


def make_distribution(samples: np.ndarray) -> Distribution:
    ordered = np.sort(samples)
    known = [name for name in PERCENTS if len(samples) * (1 - float(name) / 100) >= 2]
    edges = np.geomspace(max(1e-5, ordered[0] * 0.95), ordered[-1] * 1.05, 41)
    return Distribution(
        len(samples),
        float(samples.mean()),
        float(ordered[0]),
        float(ordered[-1]),
        {name: find_percentile(ordered, float(name) / 100) for name in known},
        edges.tolist(),
        np.histogram(samples, edges)[0].tolist(),
    )


def find_percentile(ordered: np.ndarray, share: float) -> Estimate:
    spread = 1.96 * np.sqrt(len(ordered) * share * (1 - share))
    low, middle, high = (
        ordered[int(np.clip(len(ordered) * share + rank, 0, len(ordered) - 1))] for rank in (-spread, 0, spread)
    )
    return Estimate(float(middle), float(low), float(high))


def make_series(
    good: np.ndarray,
    failed: np.ndarray,
    calls: np.ndarray,
    concurrency: int,
    rng: np.random.Generator,
    *,
    has_server: bool,
    is_streamed: bool,
) -> Series:
    seconds = np.arange(int(LEVEL_S) + 2)
    busy = np.array([np.sum((calls[:, 1] < at + 1) & (calls[:, 3] > at)) for at in seconds], float)
    tokens = np.array([64 * np.sum((good[:, 3] >= at) & (good[:, 3] < at + 1)) for at in seconds], float)
    ttft = [good[(good[:, 2] >= at) & (good[:, 2] < at + 1)] for at in seconds]
    firsts = [each[:, 2] - each[:, 1] if is_streamed else each[:0, 0] for each in ttft]
    step_s = 0.0085 + 0.0011 * min(concurrency, SERVER_ROWS)
    itl = [step_s * rng.lognormal(0, 0.05) if tokens[at] and is_streamed else None for at in seconds]
    server: dict[str, list[float | None]] = {}
    if has_server:
        rows = np.minimum(busy, SERVER_ROWS)
        server = {
            "waiting": (busy - rows).tolist(),
            "rows_per_step": rows.tolist(),
            "kv_used_share": [None, *(rows[1:] / 40 * rng.uniform(0.9, 1.1, len(rows) - 1)).tolist()],
        }
    return Series(
        1.0,
        tokens.tolist(),
        busy.tolist(),
        [float(np.quantile(each, 0.5)) if len(each) else None for each in firsts],
        [float(np.quantile(each, 0.95)) if len(each) else None for each in firsts],
        itl,
        [None if value is None else value * rng.uniform(1.3, 2.2) for value in itl],
        [int(np.sum((calls[failed][:, 3] >= at) & (calls[failed][:, 3] < at + 1))) for at in seconds],
        server,
    )


def make_waterfall(calls: np.ndarray, failed: np.ndarray, *, is_streamed: bool) -> list[dict[str, Any]]:
    chosen = np.unique(np.linspace(0, len(calls) - 1, 200).astype(int))
    return [
        {
            "due_s": float(calls[each, 0]),
            "sent_s": float(calls[each, 1]),
            "first_s": float(calls[each, 2]) if is_streamed and not failed[each] else None,
            "end_s": float(calls[each, 3]),
            "status": "RESOURCE_EXHAUSTED" if failed[each] else "OK",
            "output_tokens": 0 if failed[each] else 64,
        }
        for each in chosen
    ]


def make_figures(level: Level) -> list[Figure]:
    rates = [Figure(level.title, "output_tokens_per_s", "tokens/s", "higher", level.output_tokens_per_s)]
    return rates + [
        Figure(level.title, f"{name}_p{percent}", "s", "lower", value, each.count)
        for name, each in level.latencies.items()
        for percent, value in each.percentiles.items()
    ]


def estimate(value: float) -> Estimate:
    return Estimate(value, value * 0.97, value * 1.03)
