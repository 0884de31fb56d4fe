"""Memory and CPU time of the processes of a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

from running import make_running
from tgis_cli.top.processes import Processes


def test_a_process_has_memory_and_the_cpu_time_since_the_look_before():
    processes = Processes(make_running(pid=os.getpid()))
    processes.look()
    sum(range(3_000_000))

    [process] = processes.look()

    assert (process.name, process.pid) == ("launcher", os.getpid())
    assert process.memory_bytes > 10 << 20
    assert process.cpu_share > 0


def test_a_process_that_has_ended_is_left_out():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        processes = Processes(make_running(pid=child.pid))
        assert [process.pid for process in processes.look()] == [child.pid]
        child.communicate(b"\n")

    assert processes.look() == []


def test_of_a_server_elsewhere_no_processes_are_known():
    assert Processes(None).look() == []
