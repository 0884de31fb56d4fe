"""What other servers reached, as their load generators print it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).resolve().parents[3] / "scripts" / "bench" / "peers.py"
spec = importlib.util.spec_from_file_location("peers", FILE)
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)

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
