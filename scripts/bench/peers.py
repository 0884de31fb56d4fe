"""Reads what other servers reached: a text with a section for each, which begins with ``### NAME SHAPE``.

SHAPE is "135m" or "1.1b". In a section, lines that are JSON objects count, whatever program wrote them, by their keys:

- of a load: ``out_tok_s`` (output tokens per second over the whole load), ``ttft_ms_p50`` or ``ttft_ms``, and either
  ``tag`` with words such as "p128 n64 c8" (prompt, new tokens, streams) or ``conc`` (streams); the rate of a single
  stream after its first token is ``decode_tok_s_per_stream`` or ``decode_tok_s``
- of a server: ``ready_s``, ``ttft512_ms``, ``peak_pss_tree_mib`` or ``peak_rss_mib``

Repetitions count with their median.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

HEAD = re.compile(r"### (\S+) (\S+)")
SIZES = re.compile(r"\bp(\d+) n(\d+) c(\d+)\b")
DECODE, FIRST, READY, PEAK = "1 stream, decode tok/s", "first token of 512, s", "ready, s", "peak memory, GiB"
BY_STREAMS = {8: "8 streams, tok/s", 32: "32 streams, tok/s"}
ROWS = (DECODE, *BY_STREAMS.values(), FIRST, READY, PEAK)  # of the table


def read_peers(text: str) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by shape, name of the peer, and row of the table."""
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(dict)
    section: dict[str, list[float]] = defaultdict(list)
    for line in text.splitlines():
        if head := HEAD.match(line):
            section = found[head[2]].setdefault(head[1], defaultdict(list))
        elif line.startswith("{"):
            for row, value in read_record(json.loads(line)):
                section[row].append(value)
    return {
        shape: {peer: {row: statistics.median(values) for row, values in rows.items()} for peer, rows in peers.items()}
        for shape, peers in found.items()
    }


def read_record(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    sizes = SIZES.search(str(record.get("tag", "")))
    prompt, streams = (int(sizes[1]), int(sizes[3])) if sizes else (128, record.get("conc"))
    if "out_tok_s" in record and streams == 1 and prompt == 512:
        yield FIRST, record["ttft_ms_p50"] / 1000
    elif "out_tok_s" in record and streams == 1:
        yield DECODE, record.get("decode_tok_s_per_stream") or record["decode_tok_s"]
    elif "out_tok_s" in record and streams in BY_STREAMS:
        yield BY_STREAMS[streams], record["out_tok_s"]
    if "ttft512_ms" in record:
        yield FIRST, record["ttft512_ms"] / 1000
    if "ready_s" in record:
        yield READY, record["ready_s"]
    for name in ("peak_pss_tree_mib", "peak_rss_mib"):
        if name in record:
            yield PEAK, record[name] / 1024
