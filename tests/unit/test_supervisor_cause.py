"""Which of many errors is reported: the earliest primary one, with signals in words."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tgis_cli.supervisor.cause import Cause, Exit, Memory, find_cause, only_peers_are_blamed, read_records
from tgis_server.child import write_error
from tgis_server.errors import ModelError, PeerLost

GIB = 1 << 30
UNCHANGED = Memory(oom_kills_before=1, oom_kills_after=1)


def report(exits: list[Exit], records: list[Cause] = [], memory: Memory = UNCHANGED, num_shard: int = 2) -> Cause:  # noqa: B006  never changed
    return find_cause(exits, records, memory, num_shard=num_shard)


def test_the_earliest_primary_error_wins():
    first = Cause("shard-1", 10.0, "shard-1: bad file", 3)
    second = Cause("shard-0", 11.0, "shard-0: also bad", 3)

    assert report([Exit("shard-0", 3, 11.1), Exit("shard-1", 3, 11.2)], [second, first]) == first


def test_a_secondary_error_never_wins_over_a_primary_one():
    lost = Cause("shard-0", 9.0, "shard-0: a peer is gone", 5, is_secondary=True)
    real = Cause("shard-1", 10.0, "shard-1: bad file", 3)

    assert report([Exit("shard-0", 5, 9.1), Exit("shard-1", 3, 10.1)], [lost, real]) == real


def test_a_secondary_error_never_wins_over_a_death_by_signal():
    lost = Cause("shard-0", 9.0, "shard-0: a peer is gone", 5, is_secondary=True)

    cause = report([Exit("shard-0", 5, 9.1), Exit("shard-1", -signal.SIGKILL, 9.2)], [lost])

    assert (cause.name, cause.exit_code) == ("shard-1", 5)


def test_a_secondary_error_is_reported_where_nothing_else_is_known():
    lost = Cause("frontend", 9.0, "frontend: Shard 1 hangs.", 5, is_secondary=True)

    assert report([Exit("frontend", 5, 9.1)], [lost]) == lost


def test_a_kill_wins_over_an_error_that_it_caused_a_moment_earlier():
    consequence = Cause("shard-0", 9.9, "shard-0: RuntimeError: strange", 1)

    assert report([Exit("shard-0", 1, 9.95), Exit("shard-1", -signal.SIGKILL, 10.0)], [consequence]).name == "shard-1"


def test_an_abort_does_not_win_over_an_earlier_error():
    real = Cause("shard-0", 9.9, "shard-0: RuntimeError: strange", 1)

    assert report([Exit("shard-0", 1, 9.95), Exit("shard-1", -signal.SIGABRT, 10.0)], [real]) == real


def test_a_process_that_wrote_why_it_ends_is_not_reported_by_its_exit_code():
    record = Cause("shard-0", 10.0, "shard-0: bad file", 3)

    assert report([Exit("shard-0", 3, 9.0)], [record]) == record


def test_a_kill_by_hand_is_told_from_one_for_lack_of_memory():
    killed = [Exit("shard-1", -signal.SIGKILL, 1.0)]

    by_hand = report(killed).sentence
    for_memory = report(killed, memory=Memory(1, 2, 8 * GIB)).sentence
    for_the_machine = report(killed, memory=Memory(1, 2)).sentence
    unknown = report(killed, memory=Memory()).sentence

    assert "killed by SIGKILL, and not by the kernel for lack of memory" in by_hand
    assert "killer: the container's memory limit of 8.0 GiB was reached;" in for_memory
    assert "killer: the machine's memory was used up;" in for_the_machine
    assert "if this was not done by hand, the kernel's out-of-memory killer is the usual cause" in unknown


@pytest.mark.parametrize(
    ("exit_", "sentence"),
    [
        (Exit("shard-0", -signal.SIGTERM, 1.0), "shard-0 was ended by SIGTERM from outside: "),
        (
            Exit("shard-0", -signal.SIGABRT, 1.0, ("oops",)),
            'shard-0 aborted itself (SIGABRT) at an unknown place: its last line was "oops"; ',
        ),
        (Exit("shard-0", 1, 1.0, ("Error: x", "")), 'shard-0 ended with exit code 1; its last line was "Error: x".'),
        (Exit("shard-0", 70, 1.0), "shard-0 ended with exit code 70; it wrote nothing."),
        (Exit("frontend", 0, 1.0), "frontend ended although nobody had asked it to: "),
        (Exit("shard-0", -42, 1.0), "shard-0 was ended by signal 42 from outside"),
    ],
)
def test_exits_are_told_in_words(exit_: Exit, sentence: str):
    cause = report([exit_])

    assert cause.sentence.startswith(sentence)
    assert cause.exit_code == 5


def test_what_a_child_writes_is_what_the_launcher_reads(tmp_path: Path):
    write_error(tmp_path, "shard-0", PeerLost("The leader shard is gone."))
    write_error(tmp_path, "shard-1", ModelError("No such file."))
    write_error(tmp_path, "shard-2", RuntimeError("Connection closed by peer [127.0.0.1]:1234"))
    write_error(tmp_path, "shard-3", ValueError("strange"))

    records = {record.name: record for record in read_records(tmp_path)}

    assert {name: record.is_secondary for name, record in records.items()} == {
        "shard-0": True,
        "shard-1": False,
        "shard-2": True,
        "shard-3": False,
    }
    assert (records["shard-1"].sentence, records["shard-1"].exit_code) == ("shard-1: No such file.", 3)
    assert records["shard-3"].sentence == (
        f"shard-3: ValueError: strange (at an unknown place); the traceback is in {tmp_path}/shard-3.log."
    )
    assert records["shard-3"].exit_code == 5


def test_half_written_records_are_not_read(tmp_path: Path):
    (tmp_path / "shard-0.json.tmp").write_text(json.dumps({"process": "shard-0"})[:-4])

    assert read_records(tmp_path) == []


def test_blame_of_peers_alone_means_that_one_of_them_hangs():
    lost = Cause("frontend", 9.0, "frontend: Shard 1 hangs.", 5, is_secondary=True)

    assert only_peers_are_blamed([Exit("frontend", 5, 9.1)], [lost])
    assert not only_peers_are_blamed([Exit("frontend", 5, 9.1), Exit("shard-0", 1, 9.2)], [lost])
