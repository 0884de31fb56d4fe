"""``tgis bench engine``: decide as a launch does, measure the machine's limits, then the engine; make a result."""

from __future__ import annotations

import bisect
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tgis_cli.bench.decided import decide, private_run_dir
from tgis_cli.bench.engine.group import Group
from tgis_cli.bench.engine.work import Cost, Measured, Plan, Work, add_up, cost_of, list_works
from tgis_cli.bench.fingerprint import make_fingerprint
from tgis_cli.bench.limits import Limits, best_of, read_limits
from tgis_cli.bench.repeats import divide, make_figure
from tgis_cli.bench.result import Figure, Result
from tgis_cli.machine import Machine, probe_machine
from tgis_cli.plan.fit import fit_shards
from tgis_cli.supervisor.environment import child_environment
from tgis_cli.terminal.status_line import LINE_S, StatusLine
from tgis_cli.terminal.stop_signals import Stop
from tgis_server.engines.door import ModelSummary, StepWork
from tgis_server.errors import GroupFailed, UsageError
from tgis_server.host.interpreter import make_command
from tgis_server.options import LoadedConfig
from tgis_server.run import Run
from tgis_server.words.loading import INSPECTING
from tgis_server.words.sizes import format_count

HIGHEST_SHARE = 1.1  # small products can be a little faster than the large ones that the limit comes from


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to measure; the model and its shards come from the options of a launch."""

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    prefills: tuple[int, ...]
    rounds: int
    num_profiled: int = 0

    def make_plan(self) -> Plan:
        """
        Raises:
            UsageError: there is nothing to measure.
        """
        works = tuple(list_works(self.rows, self.contexts, self.prefills))
        if not works:
            raise UsageError(
                "There is nothing to measure: give --prefill a length, or both --rows and --context a number."
            )
        return Plan(works, self.rounds)


@dataclass(slots=True)
class Findings:
    """What the leader has reported so far."""

    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    measured: dict[int, Measured] = field(default_factory=dict)  # by number of the work

    def take(self, event: dict[str, Any], plan: Plan) -> str:
        """Note an event; returns what is being done now, if it says so."""
        match event["event"]:
            case "phase":
                return str(event["phase"])
            case "facts":
                self.facts = event["model"] | event["capacity"]
            case "left_out":
                self.notes.append(event["reason"])
            case "begun":
                when = f"round {event['round']} of {plan.rounds}" if event["round"] else "warming up"
                return f"{when}: {plan.works[event['work']].title}"
            case "times":
                work = plan.works[event["work"]]
                found = self.measured.setdefault(event["work"], Measured(work, event["steps"]))
                found.seconds.append(statistics.median(event["seconds"]))
        return ""


def measure_engine(
    loaded: LoadedConfig, environ: Mapping[str, str], options: EngineOptions, stop: Stop
) -> Result | None:
    """Measure, with a line of progress on stderr.

    Args:
        stop: ends the measurement early, with what has been measured.

    Returns:
        ``None`` after a profile, which the leader has printed.

    Raises:
        TgisError: the model cannot be loaded here, a process has failed, or a signal came before the first round.
    """
    plan = options.make_plan()
    line = StatusLine(sys.stderr, environ, elsewhere_every_s=LINE_S)
    with private_run_dir() as run_dir, cleared(line):
        line.show(lambda: INSPECTING)
        decided = decide(loaded, environ, run_dir)
        if decided.summary.kind != "decoder":
            raise UsageError(f"{decided.run.model_id} is not a decoder: `tgis bench engine` measures only decoders.")
        machine = probe_machine(environ)
        check_rows(decided.run, machine, decided.summary, options)
        run = give_slots(decided.run, max(options.rows, default=1))
        run.save()
        limits = None
        if decided.summary.sizes and not options.num_profiled:
            line.show(lambda: "measuring the limits of this machine")
            limits = measure_limits(run, environ)
        fingerprint = make_fingerprint(
            environ,
            model=decided.describe_model(),
            server=decided.given,
            run=asdict(options),
            machine=machine,
            bandwidth=limits.bandwidth if limits else None,
        )
        findings = Findings()
        with Group(run, plan, environ, options.num_profiled) as group, stop.calling():
            for event in group.events(lambda: bool(stop)):
                if doing := findings.take(event, plan):
                    line.show(lambda doing=doing: doing)  # type: ignore[misc]  # mypy: lambda default
        if limits and not stop:
            line.show(lambda: "measuring the limits of this machine again")
            with stop.calling():  # what was measured is not lost
                limits = best_of(limits, measure_limits(run, environ))
            fingerprint["memory"]["bandwidth"] = asdict(limits.bandwidth)
    if options.num_profiled:
        return None
    if not findings.measured:
        raise stop.as_error() if stop else UsageError(" ".join(findings.notes))
    fingerprint["model"] |= findings.facts
    measured = list(findings.measured.values())
    figures = list(make_figures(measured, work_of_device(run, decided.summary), limits, run))
    return Result(
        kind="engine",
        options=asdict(options),
        shape={"model": Path(run.model_id).name, "works": [work.title for work in plan.works]},
        fingerprint=fingerprint,
        figures=figures,
        notes=[*decided.warnings, *findings.notes, *doubt_limits(figures)],
        is_cut=bool(stop),
        detail={
            "limits": limits and asdict(limits),
            "seconds": {each.work.title: each.seconds for each in measured},
        },
    )


@contextlib.contextmanager
def cleared(line: StatusLine) -> Iterator[None]:
    try:
        yield
    finally:
        line.clear()


def give_slots(run: Run, num_rows: int) -> Run:
    """The run with a slot for each row."""
    return replace(run, config=replace(run.config, max_batch_size=max(run.config.max_batch_size, num_rows)))


def check_rows(run: Run, machine: Machine, summary: ModelSummary, options: EngineOptions) -> None:
    """Check that the KV cache will have room for all rows with the shortest context, before anything is loaded.

    Raises:
        UsageError: it will not; the sentence says for how many.
    """
    if run.config.skip_preflight or not (options.rows and options.contexts):
        return
    context, most = min(options.contexts), max(options.rows)

    def is_too_much(num_rows: int) -> bool:
        num_blocks = count_blocks(give_slots(run, num_rows), machine, summary)
        return Work("decode", num_rows, context).num_blocks(run.config.kv_block_size) > num_blocks

    if is_too_much(most):
        room = bisect.bisect_left(range(1, most), True, key=is_too_much)
        wrong = f"--rows is {most:,}" if room else f"--context is {context:,}"
        rows = f"at most {format_count(room, 'row')}" if room else "no row"
        raise UsageError(
            f"{wrong}, but the KV cache has room for {rows} of {context:,} tokens: give a smaller number, or a larger "
            "--kv-cache-memory."
        )


def count_blocks(run: Run, machine: Machine, summary: ModelSummary) -> int:
    """The KV blocks that the engine will have."""
    if summary.sizes is None:
        return run.config.rehearse_kv_blocks
    return fit_shards(run, machine, summary.sizes).num_blocks


def measure_limits(run: Run, environ: Mapping[str, str]) -> Limits:
    """What all shards on a CPU share, or what one GPU can do, measured in a process like a shard.

    Raises:
        GroupFailed: the process has failed.
    """
    num_threads = run.shard_threads * run.num_shard or os.cpu_count() or 1
    ended = subprocess.run(
        make_command("-m", "tgis_cli.bench.limits", run.device, run.dtype, str(num_threads)),
        env=child_environment(run, 0, environ) | {"OMP_NUM_THREADS": str(num_threads)},
        capture_output=True,
        text=True,
        process_group=0,  # Ctrl-C reaches only this process
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [""])[-1]
        raise GroupFailed(f"The limits of this machine cannot be measured: {last or f'code {ended.returncode}'}.")
    return read_limits(ended.stdout)


def work_of_device(run: Run, summary: ModelSummary) -> StepWork | None:
    """What a step costs all shards on a CPU together, or one GPU; ``None`` if nothing is computed."""
    if summary.sizes is None:
        return None
    ranks = range(run.num_shard if run.device == "cpu" else 1)
    return add_up([summary.sizes.step_work(rank, run.num_shard, run.dtype) for rank in ranks])


def make_figures(found: Iterable[Measured], step: StepWork | None, limits: Limits | None, run: Run) -> Iterator[Figure]:
    for each in found:
        work, title = each.work, each.work.title
        time_of = make_figure(title, "time", "s", "lower", each.seconds)
        amount = work.rows if work.kind == "decode" else work.tokens
        yield time_of
        yield Figure(title, "tokens_per_s", "tokens/s", "higher", divide(amount, time_of.estimate), time_of.count)
        if step and limits:
            cost = cost_of(work, step, num_steps=each.steps, chunk_tokens=run.max_batch_tokens)
            for name, least_s in least_times(cost, limits, run.dtype).items():
                share = divide(least_s, time_of.estimate)
                yield Figure(title, name, "", "", share, time_of.count)


def doubt_limits(figures: Iterable[Figure]) -> Iterator[str]:
    """Caches can be faster than the memory, but nothing is faster than the rate of matrix products."""
    if any(figure.name == "compute_share" and figure.estimate.value > HIGHEST_SHARE for figure in figures):
        yield (
            "Some figures exceed the measured limits of this machine: other processes used it while they were "
            "measured. Measure again when the machine is idle."
        )


def least_times(cost: Cost, limits: Limits, dtype: str) -> dict[str, float]:
    """How long reading and computing take at least."""
    return {
        "memory_share": cost.read_bytes / limits.bandwidth.all_threads,
        "compute_share": cost.flops / limits.gemm_flops_per_s[dtype],
    }
