"""The leader of a benchmark's shards: ``python -m tgis_cli.bench.engine.leader`` with the options of a child.

It runs like shard 0 of a server (``tgis_server.child``), and its followers are a server's. It writes what it measures
to the pipe ``--report``, as lines of JSON. Each has an ``event``: "phase", "facts", "left_out", "begun" or "times".
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from tgis_cli.bench.engine.steps import Stepper
from tgis_cli.bench.engine.work import Plan, Work, why_left_out
from tgis_server.child import leave, live
from tgis_server.engines.api import ModelRunner
from tgis_server.run import Run
from tgis_server.shard.entry import load, takes_adapters
from tgis_server.shard.plan_check import PlanCheck
from tgis_server.shard.status import ShardStatus
from tgis_server.wire.control import ControlPublisher
from tgis_server.wire.endpoints import Endpoint
from tgis_server.wire.messages import StepPlan
from tgis_server.wire.plans import PlanPublisher


class Report:
    """The pipe to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", buffering=1)

    def write(self, event: str, **facts: Any) -> None:
        self._file.write(json.dumps({"event": event, **facts}) + "\n")


class ReportingStatus(ShardStatus):
    """Also reports the phases of loading."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def report_progress(self, phase: str, done: int, total: int) -> None:
        if phase != self.phases.current:
            self._report.write("phase", phase=phase)
        super().report_progress(phase, done, total)


def lead(run: Run, report: Report, plan: Plan, num_profiled: int) -> None:
    """Load, wait for the followers, and measure.

    Raises:
        TgisError: the shard cannot continue; the sentence says why.
    """
    num_followers = run.num_shard - 1
    followers = PlanPublisher(Endpoint.unix(run.plan_socket), num_followers, run.config.step_timeout)
    control = ControlPublisher(Endpoint.unix(run.control_socket), num_followers if takes_adapters(run) else 0)
    runner = load(run, 0, ReportingStatus(report))
    try:
        followers.wait_for_followers(run.config.startup_timeout)
        control.wait_for_followers(run.config.startup_timeout)
        check = PlanCheck(runner.capacity)

        def publish(step: StepPlan) -> None:
            check.apply(step)
            followers.publish(step)

        publish(StepPlan(step=0))  # ends the followers' warm-up
        stepper = Stepper(runner, publish, run.max_batch_tokens)
        report.write("facts", **describe(runner))
        works = choose_works(plan, runner, report)
        if num_profiled:
            profile(stepper, works, num_profiled)
        else:
            measure(stepper, works, plan.rounds, report)
        followers.end()
    finally:
        followers.close()
        control.close()
        runner.close()


def choose_works(plan: Plan, runner: ModelRunner, report: Report) -> list[tuple[int, Work]]:
    """The works for which the engine has room, with their numbers in the plan."""
    chosen = []
    for index, work in enumerate(plan.works):
        if reason := why_left_out(work, runner.capacity):
            report.write("left_out", reason=reason)
        else:
            chosen.append((index, work))
    return chosen


def measure(stepper: Stepper, works: list[tuple[int, Work]], rounds: int, report: Report) -> None:
    steps = {}
    for index, work in works:
        report.write("begun", work=index, round=0)
        steps[index] = stepper.find_num_steps(work)
    for number in range(1, rounds + 1):
        for index, work in works:
            report.write("begun", work=index, round=number)
            report.write("times", work=index, steps=steps[index], seconds=stepper.measure(work, steps[index]))


def profile(stepper: Stepper, works: list[tuple[int, Work]], num_rows: int) -> None:
    """Print on stdout how much time each operation takes, for each work in turn.

    Args:
        num_rows: how many rows the table has.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for _, work in works:
        steps = stepper.find_num_steps(work)
        with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            stepper.measure(work, steps)
        print(f"{work.title}\n{found.key_averages().table(sort_by='self_cpu_time_total', row_limit=num_rows)}")


def describe(runner: ModelRunner) -> dict[str, Any]:
    return {"model": asdict(runner.facts), "capacity": asdict(runner.capacity)}


def main(argv: list[str]) -> int:
    name, options = argv[0], dict(zip(argv[1::2], argv[2::2], strict=True))
    report, plan = Report(int(options["--report"])), Plan.from_dict(json.loads(options["--plan"]))
    return live(name, options, lambda run, _: lead(run, report, plan, int(options["--profile"])))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
