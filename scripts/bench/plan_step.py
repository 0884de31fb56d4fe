"""Cost of the scheduler per step, with many running and many waiting sequences.

``python scripts/bench/plan_step.py [--rows 256] [--waiting 10000] [--length 1024] [--steps 200]``

All rows decode, the queue is stuck (no slots, or no blocks for its head), and every step is committed, as in a leader.
Prints medians over steps, in milliseconds of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time

from tgis_server.scheduler import Scheduler, SchedulerLimits
from tgis_server.wire.messages import StepPlan, StepTokens, Submit, pack_ids

BLOCK_SIZE = 16
WAITING_LENGTH = 64


def filled(arguments: argparse.Namespace, *, free_slots: int) -> Scheduler:
    """A scheduler whose rows all decode, and whose queue waits for a slot, or for blocks if there are free slots."""
    blocks_per_row = (arguments.length + arguments.steps + 2) // BLOCK_SIZE + 1
    limits = SchedulerLimits(
        num_blocks=arguments.rows * blocks_per_row,
        block_size=BLOCK_SIZE,
        max_batch_size=arguments.rows + free_slots,
        max_batch_tokens=max(8192, 2 * arguments.rows),
    )
    scheduler = Scheduler(limits)
    end = arguments.steps + 2
    scheduler.apply(
        Submit(i, pack_ids([i % 1000, *range(1, arguments.length)]), end, deadline=1e9) for i in range(arguments.rows)
    )
    while not (scheduler.num_running == arguments.rows and scheduler.num_waiting == 0):
        run_step(scheduler)
    too_big = pack_ids(range(arguments.length * 2 if free_slots else WAITING_LENGTH))
    scheduler.apply(
        Submit(arguments.rows + i, too_big, end, deadline=1e9, cache_salt=b"%d" % i) for i in range(arguments.waiting)
    )
    return scheduler


def run_step(scheduler: Scheduler) -> tuple[float, float]:
    """Run one step; return the CPU seconds of planning and committing it."""
    started_at = time.thread_time()
    plan = scheduler.plan(0.0)
    planned_at = time.thread_time()
    assert plan is not None
    tokens = answer(plan)
    answered_at = time.thread_time()
    scheduler.commit(plan, tokens, 0.0)
    return planned_at - started_at, time.thread_time() - answered_at


def answer(plan: StepPlan) -> StepTokens:
    return StepTokens([[7] if sample else [] for sample in plan.sample])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 256), ("waiting", 10_000), ("length", 1024), ("steps", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    for name, free_slots in (("no slots", 0), ("no blocks", 8)):
        scheduler = filled(arguments, free_slots=free_slots)
        steps = [run_step(scheduler) for _ in range(arguments.steps - 4)]
        plan_s, commit_s = (statistics.median(column) for column in zip(*steps, strict=True))
        print(f"{name:9}: plan {plan_s * 1e3:.3f} ms, commit {commit_s * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
