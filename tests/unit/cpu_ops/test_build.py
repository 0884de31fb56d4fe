"""Compiling the operations, and what goes wrong meanwhile. The compiler is a shell script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import psutil
import pytest

from fake_compiler import list_names, note, read_calls, write_compiler
from tgis_server.engines.native.ops.cpu import build
from tgis_server.engines.native.ops.cpu.build import CannotBuild, build_in, find_compiler
from tgis_server.engines.native.ops.cpu.instruction_sets import AVX2, AVX512

ROOT = Path(__file__).resolve().parents[3]
SETS = (AVX512, AVX2)


def build_with(environ: dict[str, str], place: Path, said: list[str] | None = None) -> Path:
    return build_in(place, find_compiler(environ), SETS, note([] if said is None else said), environ)


def test_each_instruction_set_is_compiled_once_and_linked_after_portable_code(tmp_path: Path):
    environ = write_compiler(tmp_path)

    library = build_with(environ, tmp_path / "ops")

    *compiled, linked = read_calls(tmp_path)
    assert sorted(words[-1].rpartition("/")[2] for words in compiled) == sorted(
        [f"{path.stem}.o" for path in build.list_sources() if path.suffix == ".cpp" and path.stem != "kernels"]
        + ["avx2.o", "avx512.o"]
    )
    objects = [word.rpartition("/")[2] for word in linked if word.endswith(".o")]
    assert objects[-2:] == ["avx2.o", "avx512.o"]
    assert library.read_text() == "made\n"
    assert list_names(tmp_path / "ops") == [library.name, "lock"]


def test_a_library_that_is_there_is_used(tmp_path: Path):
    environ = write_compiler(tmp_path)
    library = build_with(environ, tmp_path / "ops")
    num_calls = len(read_calls(tmp_path))

    assert build_with(environ, tmp_path / "ops") == library
    assert len(read_calls(tmp_path)) == num_calls


def test_other_sources_instruction_sets_and_compilers_make_other_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiler = find_compiler(write_compiler(tmp_path))
    names = [build.name_library(compiler, SETS), build.name_library(compiler, (AVX2,))]
    names.append(build.name_library(build.Compiler(compiler.command, "fake 2.0"), SETS))
    monkeypatch.setattr(build, "digest_sources", lambda: "other")
    names.append(build.name_library(compiler, SETS))

    assert len({*names}) == 4


def test_without_a_compiler_the_reason_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(CannotBuild, match=r"^there is no C\+\+ compiler \(install g\+\+ or clang\+\+, or name one"):
        find_compiler({"PATH": str(tmp_path)})
    with pytest.raises(CannotBuild, match=r"^CXX names icpx -v, which is not installed$"):
        find_compiler({"PATH": str(tmp_path), "CXX": "icpx -v"})


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tmp_path: Path):
    environ = write_compiler(tmp_path, 'echo "some.h:1: first" >&2; echo "error: no such flag" >&2; exit 3')

    with pytest.raises(CannotBuild, match=r"fake-c\+\+ failed \(error: no such flag\)$"):
        build_with(environ, tmp_path / "ops")

    assert list_names(tmp_path / "ops") == ["lock"]


def test_a_compiler_that_takes_too_long_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    environ = write_compiler(tmp_path, f'echo $$ > "{tmp_path}/pid"; exec sleep 60')
    compiler = find_compiler(environ)
    monkeypatch.setattr(build, "COMPILE_S", 0.5)

    with pytest.raises(CannotBuild, match=r"fake-c\+\+ took longer than 0 s$"):
        build_in(tmp_path / "ops", compiler, (AVX2,), note([]), environ)

    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_whoever_signals_the_group_of_a_process_ends_its_compiler_too(tmp_path: Path):
    environ = write_compiler(tmp_path, f'ps -o pgid= -p $$ > "{tmp_path}/group"; exit 1')

    with pytest.raises(CannotBuild):
        build_with(environ, tmp_path / "ops")

    assert int((tmp_path / "group").read_text()) == os.getpgrp()


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ("exec sleep 60", "took longer than 0 s"),
        ("echo broken; exit 1", r"failed \(broken\)"),
        ("echo 'No space left on device'; exit 1", "No space left on device"),
    ],
)
def test_a_compiler_that_does_not_say_what_it_is_makes_way_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, why: str
):
    monkeypatch.setattr(build, "VERSION_S", 0.5)
    for name, line in (("c++", first), ("g++", "echo fine")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    assert find_compiler(path) == build.Compiler(("g++",), "fine")
    with pytest.raises(CannotBuild, match=why):
        find_compiler(path | {"CXX": "c++"})


def test_a_compiler_named_with_an_open_quotation_is_no_command(tmp_path: Path):
    with pytest.raises(CannotBuild, match=r"^CXX is g\+\+ 'x, which is not a command \(no closing quotation\)$"):
        find_compiler({"PATH": str(tmp_path), "CXX": "g++ 'x"})


def test_a_full_disk_is_an_error_of_the_place_and_not_of_the_compiler(tmp_path: Path):
    script = """echo 'fatal error: x.o: No space left on device' >&2; echo 'compilation terminated.' >&2; exit 1"""
    environ = write_compiler(tmp_path, script)

    with pytest.raises(OSError, match="No space left on device"):
        build_with(environ, tmp_path / "ops")

    assert list_names(tmp_path / "ops") == ["lock"]


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops").chmod(0o777)

    with pytest.raises(PermissionError, match="other users can write there"):
        build_with(write_compiler(tmp_path), tmp_path / "ops")


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path):
    hanging = write_compiler(tmp_path, f'touch "{tmp_path}/begun"; exec sleep 60')
    program = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_build;"
        "test_build.build_with(dict(os.environ), Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "ops"), str(Path(__file__).parent)]
    with subprocess.Popen(command, env=hanging) as child:
        while not (tmp_path / "begun").exists():
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    assert any(name.startswith(build.SCRATCH) for name in list_names(tmp_path / "ops"))

    library = build_with(write_compiler(tmp_path), tmp_path / "ops")

    assert list_names(tmp_path / "ops") == [library.name, "lock"]


def test_of_two_at_once_one_compiles_and_the_other_waits_and_says_for_whom(tmp_path: Path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    environ = write_compiler(tmp_path, f'case "$*" in *-shared*) cat "{gate}";; esac')
    said: list[str] = []
    first = threading.Thread(target=build_with, args=(environ, tmp_path / "ops"))
    first.start()
    with gate.open("w"):  # the first is linking
        second = threading.Thread(target=build_with, args=(environ, tmp_path / "ops", said))
        second.start()
        while not said:
            assert second.is_alive()
    first.join()
    second.join()

    assert said == [f"waiting for process {os.getpid()}, which is compiling the CPU operations"]
    assert sum("-shared" in words for words in read_calls(tmp_path)) == 1


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    environ = write_compiler(tmp_path)
    compiler = find_compiler(environ)
    (tmp_path / "ops").mkdir(mode=0o700)
    monkeypatch.setattr(build, "TURN_S", 0.0)

    with (
        build.take_turn(tmp_path / "ops", note([])),
        pytest.raises(CannotBuild, match=rf"^process {os.getpid()} has been compiling for more than 0 s$"),
    ):
        build_in(tmp_path / "ops", compiler, SETS, note([]), environ)


def test_a_cache_keeps_a_few_libraries_and_drops_the_oldest_with_its_verdict(tmp_path: Path):
    environ = write_compiler(tmp_path)
    ops = tmp_path / "ops"
    ops.mkdir(mode=0o700)
    for age in range(build.MAX_KEPT):
        (ops / f"{age}.so").touch()
        os.utime(ops / f"{age}.so", (1000 - age, 1000 - age))
    (ops / f"{build.MAX_KEPT - 1}-machine.json").touch()

    library = build_with(environ, ops)

    kept = [f"{age}.so" for age in range(build.MAX_KEPT - 1)]
    assert list_names(ops) == sorted([*kept, library.name, "lock"])


@pytest.mark.parametrize(("compiler", "tag"), [("", "linux_x86_64"), ("missing", "any")])
def test_a_wheel_has_the_library_and_its_platform_or_neither(compiler: str, tag: str, tmp_path: Path):
    environ = os.environ | write_compiler(tmp_path) | ({"CXX": compiler} if compiler else {})
    places = {"build": "--build-base", "egg_info": "--egg-base", "bdist_wheel": "--dist-dir"}
    words = [word for command, option in places.items() for word in (command, option, str(tmp_path))]
    subprocess.run([sys.executable, "setup.py", "-q", *words], cwd=ROOT, env=environ, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.endswith(f"-py3-none-{tag}.whl")
    folder = "tgis_server/engines/native/ops/cpu"
    assert (f"{folder}/libtgis_cpu.so" in names) == (tag != "any")
    assert f"{folder}/csrc/kernels.cpp" in names
