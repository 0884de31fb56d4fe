"""Cost of a step before its forward pass: applying a plan, building its tensors and planning attention.

``python scripts/bench/host_step.py [--rows 256] [--length 8192] [--window N] [--device cpu] [--steps 48]``

There is no model, only decode rows of equal length, with keys and values shaped as in one layer of the 135M model. On a
CPU the figures include the work on tensors; ``--length 16`` leaves almost only the host's part, as the operations are
the same on small tensors. CPU time of one thread is the figure that other processes affect least. Prints medians over
the steps, and the fastest step; in one step out of 16, all rows start a new block.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from tgis_server.engines.native.batch import BatchBuilder
from tgis_server.engines.native.decoder_slots import DecoderSlots
from tgis_server.engines.native.ops import select_ops
from tgis_server.engines.native.ops.api import AttentionModifiers, CacheShape, Heads
from tgis_server.engines.sampling.staging import Staging
from tgis_server.wire.messages import NewSequence, SamplingParams, StepPlan, Wanted, pack_ids

BLOCK_SIZE = 16
HEADS = Heads(num_heads=9, num_kv_heads=3, head_dim=64, rotary_dim=64)


class TimedPlan:
    """Ops that time ``plan_attention``."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self.plan_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def plan_attention(self, *args: Any) -> Any:
        started_s = time.thread_time()
        plan = self._ops.plan_attention(*args)
        self.plan_s = time.thread_time() - started_s
        return plan


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> None:
    num_rows, length = arguments.rows, arguments.length
    device = torch.device(arguments.device)
    max_blocks = -(-(length + arguments.steps) // BLOCK_SIZE) + 1
    staging, ops = Staging(device), TimedPlan(select_ops(device, torch.bfloat16, "auto", lambda *_: None)[0])
    cache = ops.make_cache(CacheShape(1, num_rows * max_blocks, BLOCK_SIZE, HEADS))
    slots = DecoderSlots(num_rows, max_blocks, staging)
    builder = BatchBuilder(slots, ops, cache, [AttentionModifiers(0.125, window=arguments.window)], staging)
    ids = pack_ids([3] * length)
    blocks = [list(range(row * max_blocks, (row + 1) * max_blocks)) for row in range(num_rows)]
    plan = StepPlan(0, [NewSequence(r, ids, length, length - 1, SamplingParams(), Wanted()) for r in range(num_rows)])
    held = -(-length // BLOCK_SIZE)
    figures = []
    for step in range(arguments.steps):
        plan.slots.extend(range(num_rows))
        plan.num_tokens.extend([1] * num_rows)
        needed = -(-(length + step) // BLOCK_SIZE)
        plan.new_blocks.extend(row[:needed] if step == 0 else row[held:needed] for row in blocks)
        plan.sample.extend([True] * num_rows)
        held = needed
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        slots.apply(plan)
        builder.build(plan)
        slots.advance(plan)
        figures.append((time.thread_time() - cpu_s, ops.plan_s, time.perf_counter() - wall_s))
        plan = StepPlan(step + 1)
    cpu_ms, plan_ms, wall_ms = (statistics.median(column) * 1000 for column in zip(*figures[2:], strict=True))
    print(
        f"{num_rows} rows of {length} tokens: {cpu_ms:.2f} ms of CPU time, {plan_ms:.2f} of it for planning attention "
        f"(fastest step {min(figures)[0] * 1000:.2f} ms; {wall_ms:.2f} ms of wall time)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--window", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments)


if __name__ == "__main__":
    main()
