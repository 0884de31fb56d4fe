"""The error that is reported among many: the earliest primary one, with signals in words."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from tgis_cli.causes.cause import Cause, Exit, explain_own_error, find_cause, only_peers_are_blamed, read_records
from tgis_cli.causes.last_words import find_place
from tgis_cli.causes.oom import OomEvidence
from tgis_server.child import write_error
from tgis_server.errors import ModelError, PeerLost

GIB = 1 << 30
UNCHANGED = OomEvidence(is_counted=True)


CRASH = """\
Fatal Python error: Segmentation fault

Thread 0x00007f01 (most recent call first):
  File "/opt/lib/python3.11/site-packages/tgis_server/child.py", line 33 in wait_for_end

Current thread 0x00007f02 (most recent call first):
  File "/opt/lib/python3.11/site-packages/torch/nn/modules/module.py", line 7 in forward
  File "/opt/lib/python3.11/site-packages/tgis_server/engines/native/runner.py", line 123 in launch

Extension modules: torch._C"""


def report(exits: list[Exit], records: list[Cause] = [], memory: OomEvidence = UNCHANGED, num_shard: int = 2) -> Cause:  # noqa: B006  never changed
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


def test_a_secondary_error_is_reported_if_nothing_else_is_known():
    lost = Cause("frontend", 9.0, "frontend: Shard 1 is hung.", 5, is_secondary=True)

    assert report([Exit("frontend", 5, 9.1)], [lost]) == lost


def test_a_kill_wins_over_an_error_recorded_just_before_it():
    consequence = Cause("shard-0", 9.9, "shard-0: RuntimeError: strange", 1)

    assert report([Exit("shard-0", 1, 9.95), Exit("shard-1", -signal.SIGKILL, 10.0)], [consequence]).name == "shard-1"


def test_an_abort_does_not_win_over_an_earlier_error():
    real = Cause("shard-0", 9.9, "shard-0: RuntimeError: strange", 1)

    assert report([Exit("shard-0", 1, 9.95), Exit("shard-1", -signal.SIGABRT, 10.0)], [real]) == real


def test_a_written_record_takes_precedence_over_the_exit_code():
    record = Cause("shard-0", 10.0, "shard-0: bad file", 3)

    assert report([Exit("shard-0", 3, 9.0)], [record]) == record


def test_a_kill_by_hand_is_distinguished_from_one_for_lack_of_memory():
    killed = [Exit("shard-1", -signal.SIGKILL, 1.0)]

    by_hand = report(killed).sentence
    sizes = {"shard-0": 3 * GIB, "shard-1": 4 * GIB}
    for_memory = report(killed, memory=OomEvidence(True, ((0.5, 1.1),), sizes, 8 * GIB)).sentence
    for_the_machine = report(killed, memory=OomEvidence(True, ((0.5, 1.1),), sizes)).sentence
    perhaps = report(killed, memory=OomEvidence(True, ((0.5, 1.1),), {"shard-1": GIB}, 8 * GIB)).sentence
    unknown = report(killed, memory=OomEvidence()).sentence

    assert "killed by SIGKILL, but not by the kernel for lack of memory" in by_hand
    assert "killer: the container's memory limit of 8.0 GiB was reached;" in for_memory
    assert "killer: the machine's memory was used up;" in for_the_machine
    assert "when the container's memory limit of 8.0 GiB was reached; at that time, the kernel killed a" in perhaps
    assert "unless someone sent it by hand, the likely cause is the kernel's out-of-memory killer" in unknown


@pytest.mark.parametrize(
    ("number", "last"),
    [
        (signal.SIGSEGV, "E1130 07:00:00 1 thd.cc:157] pthread_create failed: Resource temporarily unavailable"),
        (signal.SIGABRT, "terminate called after throwing an instance of 'std::system_error'\n  what():  Resource "
         "temporarily unavailable"),
    ],
)  # fmt: skip
def test_a_crash_for_lack_of_threads_is_reported_as_such(number: signal.Signals, last: str):
    cause = report([Exit("frontend", -number, 1.0, (*last.splitlines(), *CRASH.splitlines()))])

    assert cause.sentence.startswith("frontend: no more processes or threads can be started, and ")


@pytest.mark.parametrize(
    ("exit_", "sentence"),
    [
        (Exit("shard-0", -signal.SIGTERM, 1.0), "shard-0 was ended by SIGTERM from outside: "),
        (
            Exit("shard-0", -signal.SIGABRT, 1.0, ("oops", "", *CRASH.splitlines())),
            "shard-0 aborted (SIGABRT) at tgis_server/engines/native/runner.py:123 in launch: "
            'its last line was "oops"; ',
        ),
        (Exit("shard-0", 1, 1.0, ("Error: x", "")), 'shard-0 ended with exit code 1; its last line was "Error: x".'),
        (Exit("shard-0", 70, 1.0), "shard-0 ended with exit code 70; it gave no reason."),
        (Exit("frontend", 0, 1.0), "frontend ended without being asked to: "),
        (Exit("shard-0", -42, 1.0), "shard-0 was ended by signal 42 from outside"),
    ],
)
def test_exits_are_reported_in_words(exit_: Exit, sentence: str):
    cause = report([exit_])

    assert cause.sentence.startswith(sentence)
    assert cause.exit_code == 5


def test_the_launcher_reads_the_records_that_children_write(tmp_path: Path):
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


def test_a_mere_report_of_a_lost_peer_leaves_the_cause_open():
    lost = Cause("frontend", 9.0, "frontend: Shard 1 is hung.", 5, is_secondary=True)

    assert only_peers_are_blamed([Exit("frontend", 5, 9.1)], [lost])
    assert not only_peers_are_blamed([Exit("frontend", 5, 9.1), Exit("shard-0", 1, 9.2)], [lost])


TRACEBACK = """\
Traceback (most recent call last):
  File "/opt/lib/python3.11/site-packages/tgis_server/child.py", line 80, in main
    serve_shard(run, rank=1)
  File "/opt/lib/python3.11/site-packages/tgis_server/engines/native/runner.py", line 123, in launch
    self._run(plan, step)
  File "/opt/tgis_server/.venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 7, in forward
    return work()
{error}"""


@pytest.mark.parametrize("text", [TRACEBACK, CRASH])
def test_the_place_is_the_innermost_frame_of_our_code(text: str):
    assert find_place(text) == "tgis_server/engines/native/runner.py:123 in launch"


def test_a_traceback_on_stderr_is_explained_like_a_record():
    error = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "79.15 GiB of which 1.25 GiB is free. Process 7 has 70.00 GiB memory in use."
    )

    cause = report([Exit("shard-1", 1, 1.0, TRACEBACK.format(error=error).splitlines())])

    assert cause.sentence.startswith(
        "shard-1 ran out of GPU memory (at tgis_server/engines/native/runner.py:123 in launch): "
        "it asked for 2.00 GiB while 1.25 GiB of 79.15 GiB was free; "
    )
    assert cause.exit_code == 4


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            "RuntimeError: could not create a primitive",
            "ran out of memory (at an unknown place): it asked for more than",
        ),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)",
            "ran out of memory (at an unknown place): it asked for 3.0 GiB;",
        ),
        ("SafetensorError: Too many open files (os error 24)", "too many files and connections are open"),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
            "the NVIDIA driver is too old for the installed torch (found version 11040): update",
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/m/a b'", "/m/a b does not exist"),
        (
            "RuntimeError: No such file or directory (os error 2)",
            "RuntimeError: No such file or directory (os error 2) (",
        ),
        ("ValueError: strange\nand long", "ValueError: strange (at an unknown place); the traceback is in "),
    ],
)
def test_library_errors_are_explained_with_their_values(tmp_path: Path, error: str, sentence: str):
    exit_ = Exit("shard-1", 1, 1.0, f"Traceback (most recent call last):\n{error}".splitlines())

    assert report([exit_]).sentence.removeprefix("shard-1").lstrip(": ").startswith(sentence)


LOST = Cause("shard-0", 9.0, "shard-0: a shard lost contact.", 5, is_secondary=True)


def blame(lost: Cause, **steps: int | None) -> str:
    return find_cause(
        [], [lost], UNCHANGED, num_shard=3, steps={f"shard-{name[-1]}": n for name, n in steps.items()}
    ).name


def test_the_one_shard_that_does_not_answer_is_blamed_for_a_lost_contact():
    assert blame(LOST, rank1=None, rank2=7) == "shard-1"
    assert blame(LOST, rank1=None, rank2=None) == "shard-0"


def test_the_one_shard_that_is_behind_is_blamed_for_a_lost_contact():
    assert blame(LOST, rank1=7, rank2=6) == "shard-2"
    assert blame(LOST, rank1=7, rank2=7) == "shard-0"


def test_the_front_ends_verdict_on_a_shard_is_kept():
    verdict = Cause("frontend", 9.0, "frontend: Shard 2 is hung.", 5, is_secondary=True)

    assert blame(verdict, rank1=None, rank2=7) == "frontend"


def test_an_abort_over_a_lost_peer_is_secondary():
    tail = ("terminate called after throwing an instance", "  what(): Watchdog caught collective operation timeout")

    assert report([Exit("shard-0", -signal.SIGABRT, 1.0, tail)]).is_secondary


def test_an_error_in_a_task_group_is_the_error_itself(tmp_path: Path):
    write_error(tmp_path, "frontend", ExceptionGroup("several", [ModelError("No such file.")]))

    [record] = read_records(tmp_path)

    assert (record.sentence, record.exit_code) == ("frontend: No such file.", 3)


def test_an_error_of_the_launcher_itself_is_explained():
    error = explain_own_error(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)))

    assert str(error).startswith("launcher: no more processes or threads can be started, and ")
    assert explain_own_error(OSError("strange")) is None
