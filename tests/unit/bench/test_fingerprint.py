"""What a result says about where it was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tgis_cli.bench.fingerprint import find_choice, find_commit, make_fingerprint, share_of_steal
from tgis_cli.bench.limits import Bandwidth
from tgis_cli.machine import Cpu, Machine

MACHINE = Machine((), (Cpu(2, 2), Cpu(3, 2)), has_bf16=False, free_bytes=1 << 30, limit_bytes=None, cpu_quota=1.5)


def test_it_names_versions_machine_model_server_and_run():
    found = make_fingerprint(
        {},
        model={"name": "demo"},
        server={"num_shard": "2"},
        run={"rounds": 3},
        machine=MACHINE,
        bandwidth=Bandwidth(1e9, 2e9, 2),
    )

    assert {"tgis", "python", "torch", "grpcio"} <= found["versions"].keys()
    assert (found["cpu"]["cores"], found["cpu"]["cpus"], found["cpu"]["affinity"]) == (1, 2, "2-3")
    assert found["cpu"]["quota"] == 1.5
    assert found["memory"]["bandwidth"] == {"one_thread": 1e9, "all_threads": 2e9, "num_threads": 2}
    assert (found["model"], found["server"], found["run"]) == ({"name": "demo"}, {"num_shard": "2"}, {"rounds": 3})
    json.dumps(found, allow_nan=False)


def test_it_needs_neither_torch_nor_grpc():
    program = "import sys, tgis_cli.bench.fingerprint; print({'torch', 'grpc', 'numpy'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_stolen_time_is_a_share_of_all_time():
    assert share_of_steal([0] * 8, [10, 0, 0, 80, 0, 0, 0, 10]) == 0.1


@pytest.mark.parametrize("after", [[], [0] * 8])
def test_stolen_time_is_unknown_where_the_kernel_does_not_count_it(after: list[int]):
    assert share_of_steal([0] * len(after), after) is None


def test_the_choice_of_a_kernel_setting_is_in_brackets():
    assert find_choice("always [madvise] never\n") == "madvise"
    assert find_choice("") == ""


def test_a_commit_is_named_only_in_a_checkout_and_marked_if_files_differ(tmp_path: Path):
    package = tmp_path / "tgis_cli"
    package.mkdir()
    assert find_commit(package) is None

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (package / "a.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "a")
    commit = git("rev-parse", "HEAD")
    assert find_commit(package) == commit

    (package / "a.py").write_text("1")
    assert find_commit(package) == f"{commit}+"
