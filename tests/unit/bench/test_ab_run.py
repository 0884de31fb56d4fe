"""Alternating rounds on two servers that exist only as arithmetic."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import sys

import pytest

from simulated_server import FakeClient, SimulatedServer
from tgis_cli.bench import ab_run
from tgis_cli.bench.ab_run import Side, run_ab
from tgis_cli.bench.load.options import LoadOptions
from tgis_cli.bench.load.target import Target
from tgis_cli.clients.parameters import Parameters
from tgis_cli.terminal.stop_signals import Stop, interrupted_by_signals
from tgis_server.errors import ModelError, Unavailable, UsageError


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The URLs of the servers in the order in which they were opened, and closed again as ``-URL``.

    All of them can be reached when they are checked.
    """
    urls: list[str] = []

    @contextlib.contextmanager
    def open_target(connection, *_, **__):
        urls.append(connection.url)
        yield Target(FakeClient(connection.url), None, None, None, "")
        urls.append(f"-{connection.url}")

    monkeypatch.setattr(ab_run, "open_target", open_target)
    monkeypatch.setattr(ab_run.Client, "connect", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(ab_run, "make_fingerprint", lambda environ, **facts: facts)
    return urls


SIDES = (Side("A", url="a:1"), Side("B", url="b:2"))


def compare(step_a: float = 0.02, step_b: float = 0.02, *, noise: float = 0.01, sides=SIDES, **options):
    """Compare servers whose steps vary from round to round."""
    rng = random.Random(7)
    servers = {"a:1": SimulatedServer(), "b:2": SimulatedServer()}
    steps = {"a:1": step_a, "b:2": step_b}

    @contextlib.contextmanager
    def open_generator(target, *_):
        server = servers[target.client.url]
        server.on_level = lambda _: setattr(server, "step_s", steps[target.client.url] * rng.gauss(1, noise))
        yield server

    settings = {"metric": "output_tokens_per_s", "max_pairs": 20, "equal_within": 0.02, "restarts": False}
    flags = options.pop("flags", {})
    err = io.StringIO()
    result = run_ab(
        LoadOptions.from_flags(flags, Parameters()),
        sides,
        **settings | options,
        err=err,
        open_generator=open_generator,
    )
    return result, servers, err.getvalue()


def test_a_slower_server_is_found(opened):
    result, _, shown = compare(step_b=0.022)

    assert result.kind == "ab"
    assert result.detail["verdict"] == "different"
    assert result.notes[0].startswith("B is worse than A: -")
    assert [figure.group for figure in result.figures] == ["A: a:1", "B: b:2", "B / A"]
    assert result.figures[0].estimate.value == pytest.approx(8 / 0.02, rel=0.05)
    assert "pair 7 of 20: B/A 0.9" in shown


def test_equal_servers_are_equal(opened):
    result, _, _ = compare(noise=0.002)

    assert result.detail["verdict"] == "equal"
    assert result.is_valid


def test_a_latency_can_be_compared(opened):
    result, _, _ = compare(step_b=0.022, metric="itl_p50")

    assert result.notes[0].startswith("B is worse than A: +")
    assert (result.figures[0].unit, result.figures[0].better) == ("s", "lower")


def test_rounds_send_different_prompts_and_both_sides_the_same(opened):
    _, servers, _ = compare()

    rounds = {url: [level.first_index for level in server.levels] for url, server in servers.items()}
    assert rounds["a:1"] == rounds["b:2"]
    measured = [first for first in rounds["a:1"] if first]
    assert len(set(measured)) == len(measured) > 6


def test_both_servers_stay_between_rounds(opened):
    compare(max_pairs=2)

    assert opened == ["a:1", "b:2", "-b:2", "-a:1"]


def test_with_restarts_only_one_server_runs_at_a_time(opened):
    compare(max_pairs=2, restarts=True)

    assert opened == ["a:1", "-a:1", "b:2", "-b:2", "b:2", "-b:2", "a:1", "-a:1"]


def test_a_round_is_eight_streams_for_five_seconds_unless_told_otherwise(opened):
    _, servers, _ = compare(max_pairs=2)
    assert (servers["a:1"].levels[1].concurrency, servers["a:1"].levels[1].max_s) == (8, 5.0)

    _, servers, _ = compare(max_pairs=2, flags={"concurrency": "2", "duration": 3.0})
    assert (servers["a:1"].levels[1].concurrency, servers["a:1"].levels[1].max_s) == (2, 3.0)

    _, servers, _ = compare(max_pairs=2, flags={"duration": 3.0})
    assert (servers["a:1"].levels[1].concurrency, servers["a:1"].levels[1].max_s) == (8, 3.0)


@pytest.mark.parametrize("flags", [{"concurrency": "1,8"}, {"sweep": True}, {"goodput": "ttft<1s"}])
def test_a_round_has_one_level(opened, flags):
    with pytest.raises(UsageError, match=f"A round has one level, but --{next(iter(flags))} asks for several"):
        compare(flags=flags)


def test_a_metric_that_is_unknown_is_refused_before_anything_starts(opened):
    with pytest.raises(UsageError, match=r"--metric tttf_p50 is unknown. Did you mean ttft_p50 or"):
        compare(metric="tttf_p50")
    with pytest.raises(UsageError, match=r"--metric tokens is unknown. Use output_tokens_per_s, .* for example\."):
        compare(metric="tokens")
    assert opened == []


def test_a_round_with_too_few_calls_for_the_metric_says_so(opened):
    with pytest.raises(UsageError, match=r"has no ttft_p99\.9: make rounds longer"):
        compare(metric="ttft_p99.9")


def test_ctrl_c_keeps_the_pairs_that_are_complete(opened):
    runs = []

    @contextlib.contextmanager
    def on_start(run):
        runs.append(run)
        tell = run.live.start_level

        def start_level(*arguments):
            tell(*arguments)
            if run.num_rounds == 5:
                run.stop()

        run.live.start_level = start_level
        yield

    result, _, _ = compare(noise=0.1, on_start=on_start)

    assert result.is_cut
    assert len(result.detail["values_b"]) == 2


@pytest.mark.parametrize("moment", ["starts", "stops"])
def test_ctrl_c_while_a_server_starts_or_stops_is_the_end(opened, monkeypatch, moment):
    original = ab_run.open_target

    @contextlib.contextmanager
    def open_target(*arguments, **options):
        with original(*arguments, **options) as target:
            if moment == "starts" and len(opened) == 9:
                signal.raise_signal(signal.SIGINT)
            yield target
        if moment == "stops" and len(opened) == 8:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ab_run, "open_target", open_target)
    stop = Stop()

    with interrupted_by_signals():
        result, servers, _ = compare(noise=0.1, restarts=True, on_start=lambda run: stop.calling(run.stop))

    assert (stop.exit_code(), result.is_cut, len(result.detail["values_b"])) == (130, True, 2)
    assert len(opened) == (9 if moment == "starts" else 8)
    assert len(servers["a:1"].levels) == 4


def test_a_server_that_dies_ends_the_comparison_as_a_problem_and_keeps_its_pairs(opened, monkeypatch):
    original = SimulatedServer.run_level

    def run_level(server, arrivals, on_tick):
        records, health = original(server, arrivals, on_tick)
        if len(server.levels) == 4:
            health.cut_reason = "The server at a:1 went away: connection reset."
        return records, health

    monkeypatch.setattr(SimulatedServer, "run_level", run_level)

    result, _, _ = compare(noise=0.1)

    assert len(result.detail["values_b"]) == 2
    assert (result.is_cut, result.is_valid) == (True, False)
    assert result.problems == ["A: a:1: The server at a:1 went away: connection reset."]


def test_a_trace_is_refused(opened, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"text": "a", "start_s": 0}\n')

    with pytest.raises(UsageError, match='replays no traces: leave "start_s" out of'):
        compare(flags={"prompts": str(path)})
    assert opened == []


@pytest.mark.parametrize("restarts", [False, True])
def test_both_sides_of_a_pair_begin_with_the_same_prompt_of_a_file(opened, tmp_path, restarts):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(1000)))

    _, servers, _ = compare(step_b=0.03, noise=0.1, max_pairs=3, restarts=restarts, flags={"prompts": str(path)})

    firsts = [[level.first_index for level in server.levels if not level.max_calls] for server in servers.values()]
    assert firsts[0] == firsts[1]
    assert len(set(firsts[0])) == 3


def test_a_model_of_b_that_is_missing_is_found_before_a_starts(opened):
    with pytest.raises(ModelError, match="B: /no/model: "):
        compare(sides=(SIDES[0], Side("B", launch="/no/model")))
    assert opened == []


def test_each_server_is_warmed_up_once(opened):
    _, servers, _ = compare(max_pairs=3)

    assert [level.max_calls for level in servers["a:1"].levels] == [8, None, None, None]


def test_rounds_that_are_doubtful_now_and_then_do_not_spoil_the_comparison(opened, monkeypatch):
    rounds = []
    original = ab_run.OpenSide.measure

    def measure(self, num_sent):
        level = original(self, num_sent)
        rounds.append(level)
        if len(rounds) == 3:
            level.problems = ["The generator was late."]
        return level

    monkeypatch.setattr(ab_run.OpenSide, "measure", measure)

    result, _, _ = compare(noise=0.002)

    assert result.is_valid
    assert result.notes[-1] == "1 of 14 rounds cannot be trusted. The last problem, on side B: The generator was late."


def test_a_side_without_a_server_is_named(opened, monkeypatch):
    @contextlib.contextmanager
    def open_target(*_, **__):
        raise Unavailable("No server at a:1.")
        yield

    monkeypatch.setattr(ab_run, "open_target", open_target)

    with pytest.raises(Unavailable, match=r"A: a:1: No server at a:1\."):
        compare()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((None, None, None), 'Nothing says what A is: give --a "MODEL ...", --a-url or --a-python.'),
        (("demo", "a:1", None), "--a-url names a running server: leave out --a and --a-python."),
        ((None, None, "/no/python"), "--a-python is /no/python, which is not a program that can be run."),
        (("demo 'x", None, None), '--a "demo \'x" cannot be split into words'),
    ],
)
def test_a_side_that_makes_no_sense_is_a_sentence(given, sentence):
    with pytest.raises(UsageError) as error:
        Side.from_flags("A", *given)
    assert sentence in str(error.value)


def test_an_interpreter_alone_launches_the_demo_model():
    assert Side.from_flags("B", None, None, sys.executable).title == f"B: the demo model with {sys.executable}"
