"""A load from options to a result, on a server that exists only as arithmetic."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulated_server import FakeClient, SimulatedServer
from tgis_cli.bench.load import run as run_module
from tgis_cli.bench.load import stop_rules
from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.levels import DEFAULT_BUDGET_S, DEFAULT_WARMUP_S, DefaultLevels
from tgis_cli.bench.load.live import Live
from tgis_cli.bench.load.options import LoadOptions
from tgis_cli.bench.load.orders import Totals
from tgis_cli.bench.load.records import GeneratorHealth, Records
from tgis_cli.bench.load.run import measure_generator, run_load
from tgis_cli.bench.load.target import Target
from tgis_cli.bench.result import Result
from tgis_cli.clients.parameters import Parameters
from tgis_server.errors import GroupFailed, UsageError


@pytest.fixture(autouse=True)
def quick_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the second in which the memory is measured."""
    monkeypatch.setattr(run_module, "make_fingerprint", lambda environ, **facts: facts)


class RefusingServer(SimulatedServer):
    def run_level(self, arrivals: Arrivals, on_tick: Callable[[Any], None]) -> tuple[Records, GeneratorHealth]:
        records, health = super().run_level(arrivals, on_tick)
        on_tick(Totals(sent=200))
        on_tick(Totals(sent=400, failed=200))
        status = np.full(len(records.index), 8)
        return dataclasses.replace(records, status=status, texts={8: "it is full"}), health


def measure(
    server: SimulatedServer, client: FakeClient | None = None, live: Live | None = None, **flags: Any
) -> Result:
    @contextlib.contextmanager
    def open_generator(*_: object) -> Iterator[SimulatedServer]:
        yield server

    target = Target(client or FakeClient(), None, None, None, "")  # type: ignore[arg-type]
    options = LoadOptions.from_flags(flags, Parameters())
    return run_load(options, target, live or Live(io.StringIO(), {}), open_generator=open_generator)


def titles(result: Result) -> list[str]:
    return [level["title"] for level in result.detail["levels"]]


def test_without_options_there_are_three_levels_after_a_warm_up():
    server = SimulatedServer()

    result = measure(server)

    assert titles(result) == ["1 stream", "8 streams", "32 streams"]
    assert [arrivals.concurrency for arrivals in server.levels] == [1, 1, 8, 32]
    assert server.levels[0].max_calls == 1
    assert (result.kind, result.problems, result.is_cut) == ("load", [], False)


def test_figures_are_those_of_the_server():
    result = measure(SimulatedServer(step_s=0.02), concurrency="4", duration=20.0, warmup=0)

    figures = {figure.name: figure.estimate.value for figure in result.figures}
    assert figures["output_tokens_per_s"] == pytest.approx(4 / 0.02, rel=0.02)
    assert figures["itl_p50"] == pytest.approx(0.02, rel=0.01)


def test_levels_and_warm_up_send_different_prompts():
    server = SimulatedServer()

    measure(server, concurrency="2,4", duration=1.0)

    firsts = [arrivals.first_index for arrivals in server.levels]
    assert firsts == [0, 1 << 32, 2 << 32]


def test_left_out_levels_are_noted_with_the_option_that_measures_them():
    result = measure(SimulatedServer(step_s=1.0))

    assert titles(result) == ["1 stream"]
    assert any("measure them with --concurrency 8,32" in note for note in result.notes)


@pytest.mark.parametrize("text", ["5", "5s", "5.0", 5.0])
def test_a_duration_is_in_seconds(text: str):
    options = LoadOptions.from_flags({"duration": text}, Parameters())

    assert (options.pacing.max_s, options.given["duration"]) == (5.0, 5.0)


def test_the_levels_of_a_run_without_options_are_as_long_with_prompts_of_a_file():
    options = LoadOptions.from_flags({"prompts": "p.jsonl"}, Parameters())

    assert (options.strategy, options.pacing.max_s) == (DefaultLevels(5.0), 5.0)


def test_a_limit_on_requests_makes_a_high_rate_possible():
    LoadOptions.from_flags({"rate": "100000", "duration": 60, "requests": 1000}, Parameters())


@pytest.mark.parametrize(("flags", "at_once"), [({"concurrency": "2"}, 2), ({"rate": "8"}, 4)])
def test_a_long_warm_up_loads_the_server_no_more_than_the_level(flags: dict[str, str], at_once: int):
    server = SimulatedServer()

    measure(server, warmup=100, duration=5, **flags)

    assert (server.levels[0].concurrency, server.levels[0].max_calls) == (at_once, 100)


def test_objectives_that_one_stream_cannot_hold_are_not_tried_at_rates():
    result = measure(SimulatedServer(), goodput="ttft<0.001ms", duration=5)

    assert titles(result) == ["1 stream"]
    assert any(
        "With a single stream, fewer than 95% of the requests meet ttft<0.001ms" in note for note in result.notes
    )


def test_a_search_that_runs_out_of_requests_says_so():
    result = measure(SimulatedServer(max_rows=1), goodput="e2e<205ms", duration=10, burstiness=0.05)

    assert result.detail["goodput"]["rate"] is None
    assert any("at lower rates a level has too few requests to judge" in note for note in result.notes)


def test_prompts_that_are_sent_again_are_counted(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a"}\n')

    result = measure(SimulatedServer(), prompts=str(path), requests=5, concurrency="1")

    assert any("The file has 1 prompt, which the load sent more than once" in note for note in result.notes)


def test_a_sweep_ends_with_a_level_that_is_only_ramp_up():
    result = measure(SimulatedServer(output_tokens=1), sweep=True, requests=1)

    assert titles(result) == ["1 stream"]
    assert result.detail["knee"] is None
    assert any("The sweep ended with 1 stream" in note for note in result.notes)


@pytest.mark.parametrize(
    ("flags", "remedy"), [({"duration": 2.5}, "--duration 14"), ({"requests": 3, "duration": 9}, "--requests 14")]
)
def test_a_level_without_any_percentile_says_what_gives_some(flags: dict[str, Any], remedy: str):
    result = measure(SimulatedServer(step_s=1.0, output_tokens=1), concurrency="1", **flags)

    assert any("too few for percentiles" in note and f"{remedy} would" in note for note in result.notes)


def test_a_sweep_names_the_knee():
    result = measure(SimulatedServer(max_rows=8), sweep=True, duration=2.0)

    assert result.detail["knee"] == "8 streams"
    assert any("The knee is at 8 streams" in note for note in result.notes)


def test_goodput_is_found_and_said():
    result = measure(SimulatedServer(max_rows=4, output_tokens=50), goodput="e2e<700ms", duration=30.0)

    goodput = result.detail["goodput"]
    assert 3 < goodput["rate"] < goodput["lowest_rate_that_failed"] < 9
    assert any("95% of the requests meet e2e<700ms" in note for note in result.notes)


def test_an_overloaded_server_is_called_so():
    result = measure(SimulatedServer(max_rows=2), rate="50", duration=10.0)

    assert any("did not keep up" in note for note in result.notes)


def test_a_stop_ends_the_run_after_its_level_and_marks_it():
    server = SimulatedServer()

    @contextlib.contextmanager
    def open_generator(*_: object) -> Iterator[SimulatedServer]:
        yield server

    @contextlib.contextmanager
    def stop_in_the_second_level(run: Any) -> Iterator[None]:
        server.on_level = lambda arrivals: run.stop() if arrivals.concurrency == 8 else None
        yield

    target = Target(FakeClient(), None, None, None, "")  # type: ignore[arg-type]
    options = LoadOptions.from_flags({}, Parameters())
    result = run_load(
        options, target, Live(io.StringIO(), {}), open_generator=open_generator, on_start=stop_in_the_second_level
    )

    assert (titles(result), result.is_cut, server.is_stopped) == (["1 stream", "8 streams"], True, True)


@pytest.mark.parametrize(
    ("flags", "limits"), [({}, [DEFAULT_WARMUP_S, DEFAULT_BUDGET_S]), ({"duration": 5}, [None] * 2)]
)
def test_only_a_run_without_options_limits_its_warm_up_and_its_levels(
    flags: dict[str, Any], limits: list[float | None]
):
    server = SimulatedServer()

    measure(server, **flags)

    assert [arrivals.limit_s for arrivals in server.levels[:2]] == limits


def test_a_failure_of_the_generator_keeps_the_levels_that_are_measured():
    def fail(arrivals: Arrivals) -> None:
        if arrivals.concurrency == 4:
            raise GroupFailed("A worker is gone.")

    result = measure(SimulatedServer(on_level=fail), concurrency="2,4,8", warmup=0)

    assert (titles(result), result.is_cut) == (["2 streams"], True)
    assert result.problems == ["4 streams: a worker is gone."]


def test_a_failure_of_the_generator_in_the_first_level_is_one_of_the_command():
    def fail(arrivals: Arrivals) -> None:
        raise GroupFailed("A worker is gone.")

    with pytest.raises(GroupFailed, match="A worker is gone"):
        measure(SimulatedServer(on_level=fail), concurrency="2", warmup=0)


def test_the_warm_up_shows_how_far_it_is_even_without_a_terminal():
    stream, moments = io.StringIO(), itertools.count(step=11)

    measure(SimulatedServer(), live=Live(stream, {}, lambda: float(next(moments))), concurrency="2", requests=2)

    assert "Warming up with 2 requests: 2 completed, 40 tokens\n" in stream.getvalue()


def test_a_server_that_refuses_every_call_ends_the_run_with_its_own_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stop_rules, "REFUSED_S", 0.0)
    server = RefusingServer()

    result = measure(server, concurrency="2,4", warmup=0)

    assert (titles(result), result.is_cut, server.is_stopped) == (["2 streams"], True, True)
    assert result.problems == [
        "The level was stopped early, because the server refused 200 requests in a row "
        "(RESOURCE_EXHAUSTED: it is full)."
    ]


def test_a_rate_with_a_number_of_requests_is_shown_while_it_runs():
    stream, moments = io.StringIO(), itertools.count(step=11)

    measure(SimulatedServer(), live=Live(stream, {}, lambda: float(next(moments))), rate="2", requests=50)

    assert "2 requests/s, finishing: " in stream.getvalue()


def test_a_trace_is_not_warmed_up_unless_that_is_asked_for(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f'{{"text": "{number}", "start_s": {number}}}\n' for number in range(5)))
    server, warmed = SimulatedServer(), SimulatedServer()

    result = measure(server, prompts=str(path))
    measure(warmed, prompts=str(path), warmup=2)

    assert [arrivals.first_index for arrivals in server.levels] == [0]
    assert not any("more than once" in note for note in result.notes)
    assert [(arrivals.first_index, arrivals.max_calls) for arrivals in warmed.levels] == [(-2, 2), (0, 5)]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"input_tokens": "2000"}, "can total 2,064 tokens, but this server allows 2,048"),
        ({"output_tokens": "1:1025"}, "allows at most 1,024 new tokens per answer"),
        ({"input_tokens": "1"}, "adds 1 special token to each text: at least 2 tokens are needed"),
        (
            {"shared_prefix": 127},
            "adds 1 special token to each text and --shared-prefix takes 127: at least 129 tokens are needed",
        ),
    ],
)
def test_shapes_that_the_model_cannot_have_are_refused(flags: dict[str, str], reason: str):
    with pytest.raises(UsageError, match=reason):
        measure(SimulatedServer(), **flags)


def test_a_stream_with_one_input_can_have_a_limit_for_its_first_token():
    flags = {"stream": True, "inputs_per_call": 1, "goodput": "ttft<1s"}

    assert LoadOptions.from_flags(flags, Parameters()).is_streamed


@pytest.mark.parametrize("flags", [{"duration": 60.0}, {"requests": 40}])
def test_with_a_length_of_their_own_all_default_levels_are_measured(flags: dict[str, Any]):
    result = measure(SimulatedServer(step_s=1.0), **flags)

    assert titles(result) == ["1 stream", "8 streams", "32 streams"]


def test_the_shape_of_prompts_is_their_digest(tmp_path: Path):
    shapes = []
    for name, text in (("a", "one"), ("b", "one"), ("a", "two")):
        path = tmp_path / name
        path.write_text(f'{{"text": "{text}"}}\n')
        shapes.append(measure(SimulatedServer(), prompts=str(path), concurrency="1").shape)

    assert shapes[0] == shapes[1] != shapes[2]


@pytest.mark.parametrize(
    ("flags", "parameters", "of_server", "named"),
    [
        ({"concurrency": "8"}, Parameters(), [], "--concurrency"),
        ({"duration": 2.0, "workers": 2}, Parameters(temperature=0.5), [], "--temperature"),
        ({}, Parameters(), ["--url", "--ca"], "--url, --ca"),
    ],
)
def test_options_without_an_effect_on_the_generator_alone_are_refused(
    flags: dict[str, Any], parameters: Parameters, of_server: list[str], named: str
):
    with pytest.raises(UsageError, match=f"a load of its own, so {named} has no effect"):
        measure_generator(LoadOptions.from_flags(flags, parameters), of_server)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"rate": "4", "concurrency": "8"}, "--concurrency and --rate are given, but each decides the levels"),
        ({"burstiness": 0.5}, "--burstiness is for an open loop: give --rate or --goodput too"),
        ({"rate": "4", "arrival": "constant", "burstiness": 0.5}, "--burstiness has no effect with --arrival constant"),
        ({"prompts": "p", "input_tokens": "5"}, "--prompts gives whole prompts, so --input-tokens has no effect"),
        ({"prompts": "p", "output_tokens": "5:9"}, "must be a single number with --prompts"),
        ({"speed": 2.0}, "--speed is for a trace"),
        ({"stream": True, "inputs_per_call": 2}, "A stream has one prompt"),
        ({"stream": False, "goodput": "ttft<5ms"}, "--goodput can limit only e2e"),
        ({"concurrency": "1,x"}, "must be whole numbers of streams above 0, such as 1,8,32"),
        ({"concurrency": "0"}, "must be whole numbers of streams above 0"),
        ({"rate": "-1"}, "must be requests per second above 0"),
        ({"rate": "2,4,2"}, "names 2 twice: leave one of them out"),
        ({"rate": "1e9"}, "may be at most 100,000"),
        ({"rate": "nan"}, "must be requests per second above 0"),
        ({"duration": 0.0}, "--duration is 0.0, but must be a number of seconds above 0"),
        ({"duration": "x"}, "--duration is x, but must be a number of seconds above 0"),
        ({"rate": "4", "burstiness": 1e-9}, "--burstiness is 1e-09, but must be at least 0.01"),
        ({"rate": "5,100000", "duration": 60}, "makes 6,000,000 requests, but a level may have at most 1,000,000"),
        ({"rate": "1e-9", "duration": 2}, "sends less than one request in 2 s"),
        ({"rate": "1e-9", "requests": 2}, "take more than a day"),
        ({"rate": "1", "requests": 2_000_000}, "may have at most 1,000,000 per level"),
    ],
)
def test_options_that_contradict_each_other_are_refused(flags: dict[str, Any], reason: str):
    with pytest.raises(UsageError, match=reason):
        LoadOptions.from_flags(flags, Parameters())
