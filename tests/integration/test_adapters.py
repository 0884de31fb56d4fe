"""Adapters on real ranks: staged while steps run, acknowledged over the control channel, activated by a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driving import adapter, expected_tokens, submit
from shards import DEADLINE_S, Session, Shards, make_run


@pytest.mark.parametrize("plan_ahead", [False, True], ids=["one-step", "two-steps-in-flight"])
def test_requests_use_the_adapter_that_all_ranks_have_staged(tmp_path: Path, plan_ahead: bool) -> None:
    run = make_run(tmp_path, num_shard=2, rehearse_plan_ahead=plan_ahead)
    requests = [submit(1, max_new_tokens=100), *(submit(i, adapter=adapter(f"a{i % 6}")) for i in range(2, 14))]
    with Shards(run) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)

        session.send(*requests)

        tokens, failures = session.collect(*(request.request_id for request in requests))
        assert tokens == {request.request_id: expected_tokens(request) for request in requests}
        assert failures == {}


def test_an_adapter_that_one_rank_cannot_read_fails_only_its_requests(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_shard=2, fault="shard1:missing-file@stage")
    neighbour, later = submit(1, max_new_tokens=200), submit(4)
    with Shards(run) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)

        session.send(neighbour, submit(2, adapter=adapter("a")), submit(3, adapter=adapter("a")))
        tokens, failures = session.collect(1, 2, 3)
        session.send(submit(5, adapter=adapter("a")), later)
        later_tokens, later_failures = session.collect(4, 5)

        assert tokens[1] == expected_tokens(neighbour)
        assert later_tokens[4] == expected_tokens(later)
        outcomes = failures | later_failures
        assert outcomes.keys() == {2, 3, 5}
        [(status, text)] = set(outcomes.values())
        assert status == "INVALID_ARGUMENT"
        assert text.startswith("adapter a cannot be read: ")


def test_a_rank_that_dies_during_staging_ends_the_group(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_shard=2, fault="shard1:kill@stage")
    with Shards(run) as shards, shards.stub() as stub:
        shards.wait_until_serving()
        session = Session(stub)

        session.send(submit(1, adapter=adapter("a")))

        assert shards.processes[0].wait(DEADLINE_S) == 5
        record = json.loads((run.errors_dir / "shard-0.json").read_text())
        assert record["is_secondary"]
        assert "it closed the control channel" in record["sentence"]
