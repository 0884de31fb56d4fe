"""The arithmetic of the standard table, and what other servers reached, as their load generators print it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(Path(__file__).resolve().parents[3] / "scripts" / "bench"), *sys.path])
    peers, table = map(importlib.import_module, ("peers", "standard_table"))

DECODE, EIGHT, FIRST = "1 stream, decode tok/s", "8 streams, tok/s", "first token of 512, s"

TEXT = """\
### llama 135m
{"ready_s": 0.8, "rss_at_ready_mib": 900}
{"tag": "", "requests": 2, "out_tok_s": 1.0}
{"tag": "llama-135m p128 n128 c1", "out_tok_s": 80.0, "decode_tok_s_per_stream": 86.0, "ttft_ms_p50": 120}
{"tag": "llama-135m p128 n128 c1", "out_tok_s": 81.0, "decode_tok_s_per_stream": 88.0, "ttft_ms_p50": 120}
{"tag": "llama-135m p128 n64 c8", "out_tok_s": 140.0, "ttft_ms_p50": 900}
{"server_cores_used": 1.9, "foreign_cores": {}}
{"tag": "llama-135m p512 n2 c1", "out_tok_s": 3.0, "decode_tok_s_per_stream": 80.0, "ttft_ms_p50": 590}
a line of the server
{"peak_rss_tree_mib": 1400, "peak_pss_tree_mib": 1331.2}
### ov-bf16 135m
{"tag": "ov-bf16-135m", "ready_s": 5.1}
{"tag": "ov-bf16-135m", "conc": 1, "out_tok_s": 50.0, "decode_tok_s": 57.0, "ttft_ms": 100}
{"tag": "ov-bf16-135m", "conc": 32, "out_tok_s": 339.0, "decode_tok_s": 400.0, "ttft_ms": 900}
{"tag": "ov-bf16-135m", "ttft512_ms": 390, "peak_rss_mib": 1024}
### llama 1.1b
{"tag": "llama-1.1b p128 n64 c32", "out_tok_s": 50.0, "ttft_ms_p50": 900}
"""


def test_figures_are_found_by_shape_peer_and_row_with_the_median_of_repetitions():
    assert peers.read_peers(TEXT) == {
        "135m": {
            "llama": {
                "ready, s": 0.8,
                "1 stream, decode tok/s": 87.0,
                "8 streams, tok/s": 140.0,
                "first token of 512, s": 0.59,
                "peak memory, GiB": 1.3,
            },
            "ov-bf16": {
                "ready, s": 5.1,
                "1 stream, decode tok/s": 57.0,
                "32 streams, tok/s": 339.0,
                "first token of 512, s": 0.39,
                "peak memory, GiB": 1.0,
            },
        },
        "1.1b": {"llama": {"32 streams, tok/s": 50.0}},
    }


def test_the_engine_is_measured_before_and_after_the_server():
    order, figures = [], iter((10.0, 7.0, 12.0))

    def measure(name: str) -> float:
        order.append(name)
        return next(figures)

    assert table.interleave(lambda: measure("served"), lambda: measure("engine")) == (7.0, 11.0)
    assert order == ["engine", "served", "engine"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (DECODE, 50.0),
        (EIGHT, 8 * 64 / (8 * 0.2 + 63 * 0.1)),  # eight prefills, then 63 steps for the 63 tokens that follow the first
        (FIRST, 0.5),
    ],
)
def test_what_the_engine_alone_would_reach_follows_from_its_steps(row: str, expected: float):
    figures = {
        ("decode, 1 row at 160", "tokens_per_s"): 50.0,
        ("decode, 8 rows at 160", "time"): 0.1,
        ("prefill, 128 tokens", "time"): 0.2,
        ("prefill, 512 tokens", "time"): 0.5,
    }

    assert table.read_engine(row, figures) == pytest.approx(expected)


def test_ratios_are_shares_of_the_engines_speed_where_both_do_the_same_work():
    served, engine = {DECODE: 40.0, EIGHT: 60.0, FIRST: 0.5}, {DECODE: 50.0, EIGHT: 64.0, FIRST: 0.4}

    rows = {name: cells for name, *cells in table.make_table(served, engine, {"llama": {DECODE: 45.0}})}

    assert rows[""] == ["served", "engine", "ratio", "llama"]
    assert (rows[DECODE], rows[EIGHT], rows[FIRST]) == (
        ["40", "50", "0.8", "45"],
        ["60", "64", "", ""],
        ["0.5", "0.4", "0.8", ""],
    )
