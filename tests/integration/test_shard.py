"""Shard processes, driven over their sockets as by a front-end."""

from __future__ import annotations

import json
import os
import signal
import time

import grpc
import pytest

from driving import expected_tokens, submit
from shards import DEADLINE_S, Session, Shards, make_run, wait_until
from tgis_server.wire import shard_pb2 as pb

CLOCK_TICK_S = 0.01  # the resolution of a process's start time


def test_a_leader_generates_over_its_session(tmp_path):
    with Shards(make_run(tmp_path)) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)
        requests = [submit(i, prompt=3 + i, max_new_tokens=5) for i in range(4)]

        session.send(*requests)

        tokens, failures = session.collect(0, 1, 2, 3)
        assert tokens == {request.request_id: expected_tokens(request) for request in requests}
        assert failures == {}


@pytest.mark.parametrize("plan_ahead", [False, True])
def test_followers_execute_the_leaders_steps(tmp_path, plan_ahead):
    with Shards(make_run(tmp_path, num_shard=3, rehearse_plan_ahead=plan_ahead)) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)
        session.send(submit(1, max_new_tokens=20))

        tokens, _ = session.collect(1)

        assert tokens[1] == expected_tokens(submit(1, max_new_tokens=20))
        assert shards.health(0).executed_steps >= 20
        for rank in (1, 2):
            wait_until(
                lambda rank=rank: shards.health(rank).executed_steps == shards.health(0).executed_steps,
                f"shard {rank} to execute as many steps as the leader",
            )


def test_the_end_of_a_session_cancels_its_requests(tmp_path):
    with Shards(make_run(tmp_path, rehearse_step_ms=5)) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)
        session.send(submit(1, max_new_tokens=500))
        next(session.results())

        session.call.cancel()

        wait_until(lambda: shards.health().step_age_s == 0.0, "the leader to be idle")
        steps = shards.health().executed_steps
        assert steps < 500


def test_a_second_session_is_refused_while_the_first_is_open(tmp_path):
    with Shards(make_run(tmp_path)) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)
        session.send(submit(1, max_new_tokens=1))
        session.collect(1)

        with pytest.raises(grpc.RpcError) as refused:
            next(Session(stub).results())

        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_step_that_runs_out_of_memory_fails_only_its_prefills(tmp_path):
    with Shards(make_run(tmp_path, fault="shard0:oom@step3", rehearse_step_ms=20)) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)
        first = submit(1, max_new_tokens=12)
        session.send(first)
        next(session.results())

        session.send(submit(2))
        session.send(submit(3))
        tokens, failures = session.collect(1, 2, 3)

        assert {status for status, _ in failures.values()} == {"RESOURCE_EXHAUSTED"}
        assert tokens[1] == expected_tokens(first)[1:]


def test_sigterm_ends_leader_and_followers_cleanly(tmp_path):
    with Shards(make_run(tmp_path, num_shard=2)) as shards:
        shards.wait_until_serving()

        for process in shards.processes:
            process.send_signal(signal.SIGTERM)

        assert [process.wait(DEADLINE_S) for process in shards.processes] == [0, 0]


def test_a_follower_that_loses_its_leader_reports_a_secondary_failure(tmp_path):
    with Shards(make_run(tmp_path, num_shard=2)) as shards:
        shards.wait_until_serving()

        shards.processes[0].kill()

        assert shards.processes[1].wait(DEADLINE_S) == 5
        record = json.loads((shards.run.errors_dir / "shard-1.json").read_text())
        assert record["is_secondary"]
        assert record["sentence"] == "The leader shard is gone."


def test_followers_fail_when_their_leader_fails(tmp_path):
    with Shards(make_run(tmp_path, num_shard=2, fault="shard0:error@step2")) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)

        session.send(submit(1))

        assert [process.wait(DEADLINE_S) for process in shards.processes] == [5, 5]
        records = [json.loads((shards.run.errors_dir / f"shard-{rank}.json").read_text()) for rank in (0, 1)]
        assert [record["is_secondary"] for record in records] == [False, True]


def test_a_pool_smaller_than_the_warm_up_can_be_warmed_up(tmp_path):
    with Shards(make_run(tmp_path, rehearse_kv_blocks=2)) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)

        session.send(submit(1))

        assert session.collect(1)[0][1] == expected_tokens(submit(1))


def test_no_shard_outlives_the_holder_of_the_death_pipe(tmp_path):
    with Shards(make_run(tmp_path, num_shard=2)) as shards:
        shards.wait_until_serving()

        os.close(shards.death_pipe[1])

        assert [process.wait(2) for process in shards.processes] == [70, 70]


def test_an_uncaught_error_is_recorded_in_the_run_directory(tmp_path):
    with Shards(make_run(tmp_path, fault="shard0:error@load")) as shards:
        assert shards.processes[0].wait(DEADLINE_S) == 5

        record = json.loads((shards.run.errors_dir / "shard-0.json").read_text())
        assert record["sentence"] == "RuntimeError: provoked by --fault"
        assert "faults.py" in (shards.run.errors_dir / "shard-0.log").read_text()


def test_health_reports_the_age_of_a_hung_step(tmp_path):
    with Shards(make_run(tmp_path, fault="shard0:hang@step1")) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)

        session.send(submit(1))

        wait_until(lambda: shards.health().step_age_s > 0.2, "the age of the hung step to grow")


def test_health_reports_the_phases_of_startup_in_order(tmp_path):
    started_at = time.monotonic()
    with Shards(make_run(tmp_path, num_shard=2)) as shards:
        shards.wait_until_serving()

        phases = [shards.health(rank).phases for rank in range(2)]

    names = ["starting", "importing libraries", "pretending to read weights", "warming up", "serving"]
    assert [[phase.name for phase in of_rank] for of_rank in phases] == [names] * 2
    for of_rank in phases:
        times = [started_at - CLOCK_TICK_S, *(phase.started_at_s for phase in of_rank), time.monotonic()]
        assert times == sorted(times)


def test_info_describes_the_loaded_model(tmp_path):
    with Shards(make_run(tmp_path, num_shard=2)) as shards, shards.stub(1) as stub:
        shards.wait_until_serving()

        info = stub.Info(pb.InfoRequest())

        assert (info.model_type, info.vocab_size, info.max_sequence_length) == ("fake", 97, 512)
