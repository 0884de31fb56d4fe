"""Our processes never import from the current directory."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgis_cli.model_files.download.transfers import TransferOptions
from tgis_cli.supervisor.environment import child_environment
from tgis_server.host import interpreter
from tgis_server.host.interpreter import make_command, make_environment
from tgis_server.options import ServeConfig
from tgis_server.run import Run

ROOT = Path(__file__).parents[3]
TGIS = Path(sys.executable).parent / "tgis"
FOREIGN = ("shutil", "json", "hashlib", "ctypes", "socket", "typer")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A directory whose modules end any process that imports them."""
    for name in FOREIGN:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('imported {name}')\n")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", None),
        (":", None),
        (".:./", None),
        (":/lib", "/lib"),
        ("/lib:", "/lib"),
        ("/one::/two", "/one:/two"),
        ("lib:/two", "lib:/two"),
    ],
)
def test_children_get_pythonpath_without_the_current_directory(given: str, kept: str | None):
    environ = make_environment({"PYTHONPATH": given, "HOME": "/home/u"})

    assert environ == {"HOME": "/home/u", "PYTHONSAFEPATH": "1"} | ({} if kept is None else {"PYTHONPATH": kept})


@pytest.mark.parametrize("rank", [None, 0])
def test_every_kind_of_child_gets_that_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int | None):
    monkeypatch.setenv("PYTHONPATH", ":/lib")
    run = Run(
        config=ServeConfig(rehearse=True),
        run_dir=tmp_path,
        model_id="fake",
        model_dir=tmp_path,
        engine="fake",
        device="cpu",
        dtype="float32",
        num_shard=1,
        max_sequence_length=512,
        is_max_sequence_length_explicit=False,
        max_batch_tokens=64,
        tokenization_workers=1,
    )

    for environ in (child_environment(run, rank, os.environ), TransferOptions().make_environment()):
        assert (environ["PYTHONPATH"], environ["PYTHONSAFEPATH"]) == ("/lib", "1")


@pytest.mark.parametrize("module", ["tgis_cli", "tgis_cli.grpc_healthcheck"])
@pytest.mark.parametrize("pythonpath", [None, ":", "/nowhere:."])
def test_programs_started_as_modules_import_nothing_foreign(foreign: Path, module: str, pythonpath: str | None):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ |= {} if pythonpath is None else {"PYTHONPATH": pythonpath}

    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=foreign, env=environ, capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_child_started_by_hand_imports_nothing_foreign(foreign: Path):
    command = [sys.executable, "-m", "tgis_server.child", "frontend", "--death-fd", "0", "--parent", "0"]

    done = subprocess.run(command, cwd=foreign, stdin=subprocess.DEVNULL, capture_output=True)

    assert (done.returncode, done.stderr) == (70, b"")  # it ends because its parent is another process


def test_scripts_import_nothing_foreign_even_with_an_empty_entry_in_pythonpath(foreign: Path):
    environ = os.environ | {"PYTHONPATH": ":"}

    done = subprocess.run([TGIS, "version"], cwd=foreign, env=environ, capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")


def test_children_of_children_import_nothing_foreign(foreign: Path):
    program = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import json']))"

    done = subprocess.run(make_command("-c", program), cwd=foreign, env=make_environment(os.environ), check=False)

    assert done.returncode == 0


def test_a_program_starts_in_a_removed_directory(tmp_path: Path):
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m tgis_cli version"

    done = subprocess.run(["sh", "-c", program], capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")


def test_the_package_leaves_the_path_alone_when_it_is_imported_as_a_library(foreign: Path):
    program = "import tgis_cli, sys; print(sys.path[0] == '')"

    done = subprocess.run([sys.executable, "-c", program], cwd=foreign, capture_output=True, text=True)

    assert done.stdout == "True\n"


def test_all_installed_scripts_are_known():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert sorted(interpreter.SCRIPTS) == sorted(project["scripts"])


def test_only_one_module_makes_python_commands():
    before_installation = "scripts/install.py"
    of_modules_beside_it = "scripts/image/test.py"  # its child imports from its own folder, which -P forbids
    places = [place for part in ("tgis_cli", "server", "scripts") for place in find_commands(ROOT / part)]

    assert {place.rpartition(":")[0] for place in places} == {
        "server/tgis_server/host/interpreter.py",
        before_installation,
        of_modules_beside_it,
    }, places


def find_commands(directory: Path) -> Iterator[str]:
    """Places where a list or tuple begins with the interpreter."""
    for file in sorted(directory.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            first = ast.unparse(node.elts[0]) if isinstance(node, ast.List | ast.Tuple) and node.elts else ""
            if "sys.executable" in first and not first.endswith(".parent / 'tgis'"):
                yield f"{file.relative_to(ROOT)}:{node.lineno}"
