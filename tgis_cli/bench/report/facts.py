"""What is known about a level besides its latencies: its windows, the server's own view, and the generator's health."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.report.units import choose_unit, is_known
from tgis_server.words.sizes import format_count

SPLIT = ("client", "queue", "prefill", "rest")


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    text: str


def describe_level(level: Level) -> Iterator[Fact]:
    steady, whole = level.steady, level.whole
    rates = (level.output_tokens_per_s.value, level.whole_output_tokens_per_s)
    inside, over_all = (choose_unit("tokens/s", rates).format(rate) for rate in rates)
    yield Fact(
        "Window",
        f"{steady.start_s:.1f} to {steady.end_s:.1f} s of {whole.end_s - whole.start_s:.1f} s, "
        f"{level.completed:,} of {format_count(level.sent, 'request')}, {inside} tokens/s "
        f"({over_all} over the whole level)",
    )
    if split := describe_split(level):
        yield Fact("First token", split)
    if server := describe_server(level):
        yield Fact("Server", server)
    if generator := describe_generator(level):
        yield Fact("Generator", generator)


def describe_split(level: Level) -> str:
    """``queue 12.1 + prefill 45.0 + rest 3.2 ms on average``."""
    split = {name: value for name, value in (level.first_token_split or {}).items() if is_known(value)}
    unit = choose_unit("s", [max(split.values(), default=0.0)])
    parts = " + ".join(f"{name} {unit.format(split[name])}" for name in SPLIT if name in split)
    return f"{parts} {unit.name} on average" if parts else ""


def describe_server(level: Level) -> str:
    """``7.8 rows per step of 17.2 ms, at most 3 waiting, KV cache 41% used, 48% at most``."""
    facts = level.server or {}
    parts = []
    if is_known(rows := facts.get("rows_per_step")) and is_known(step_s := facts.get("step_s")):
        parts.append(f"{rows:.1f} rows per step of {choose_unit('s', [step_s]).format_with_name(step_s)}")
    if is_known(waiting := facts.get("waiting_max")):
        parts.append(f"at most {waiting:.0f} waiting" if waiting else "none waiting")
    if is_known(mean := facts.get("kv_used_mean_share")) and is_known(most := facts.get("kv_used_max_share")):
        parts.append(f"KV cache {mean:.0%} used, at most {most:.0%}")
    if hits := facts.get("prefix_hit_share"):
        parts.append(f"{hits:.0%} of the prompt tokens in the prefix cache")
    if preemptions := facts.get("preemptions"):
        parts.append(format_count(preemptions, "preemption"))
    return ", ".join(parts)


def describe_generator(level: Level) -> str:
    facts = level.generator
    parts = []
    if workers := facts.get("workers"):
        parts.append(format_count(workers, "worker"))
    for name, words in (("send_lag_p99_s", "requests sent"), ("loop_lag_p99_s", "event loop")):
        if is_known(lag := facts.get(name)):
            parts.append(f"{words} {choose_unit('s', [lag]).format_with_name(lag)} late at p99")
    if is_known(share := facts.get("cpu_share")):
        parts.append(f"{share:.0%} of a CPU")
    if is_known(cost := facts.get("cpu_us_per_token")):
        parts.append(f"{cost / 1000:.3f} ms of CPU per token")
    return ", ".join(parts)
