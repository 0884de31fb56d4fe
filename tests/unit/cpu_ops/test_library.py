"""Which library and which of its kernels serve. Compiler and self-test are fakes, except in the last tests."""

from __future__ import annotations

import _ctypes
import ctypes
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fake_compiler import list_names, note, read_calls, write_compiler, write_cpuinfo
from tgis_server.engines.door import CpuOps
from tgis_server.engines.native.ops.cpu import build, interface, library, self_test
from tgis_server.engines.native.ops.cpu.instruction_sets import AVX2, AVX512, find_usable

TEST = "fake_self_test"
SETS = (AVX512, AVX2)
REAL_LOAD, STAT = interface.load, os.stat


@pytest.fixture(autouse=True)
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PACKAGED", tmp_path / "packaged.so")
    monkeypatch.setattr(library, "SELF_TEST", TEST)
    monkeypatch.setattr(interface, "load", lambda path: SimpleNamespace(path=path))


def prepare(folder: Path, then: str = "", verdict: str = "print('[]')") -> dict[str, str]:
    """The environment with a fake compiler and a self-test that ends with ``verdict``; ``name`` is the set."""
    environ = write_compiler(folder, then)
    (folder / f"{TEST}.py").write_text(
        f"import os, signal, sys\nname = sys.argv[2]\n"
        f"open({str(folder / 'tested')!r}, 'a').write(name + ' ')\n"
        f"{verdict}\n"
    )
    return environ | {"PYTHONPATH": str(folder)}


def open_with(folder: Path, environ: dict[str, str], flags: dict[str, Any] | None = None) -> library.Opened:
    return library.open_library(note([]), environ=environ, cpuinfo=write_cpuinfo(folder), **(flags or {}))


def describe(folder: Path, environ: dict[str, str], choice: str = "auto", dtype: str = "bfloat16") -> CpuOps:
    return library.describe_cpu_ops(choice, dtype, environ, write_cpuinfo(folder))


def test_the_first_start_compiles_and_tests_and_the_next_does_neither(tmp_path: Path):
    environ = prepare(tmp_path)
    assert describe(tmp_path, environ).state == "compiles"

    first = open_with(tmp_path, environ)
    num_calls = len(read_calls(tmp_path))
    second = open_with(tmp_path, environ)

    assert (first.kernels, first.why) == (second.kernels, second.why) == ("avx512", "")
    assert len(read_calls(tmp_path)) == num_calls
    assert (tmp_path / "tested").read_text() == "avx512 "
    assert describe(tmp_path, environ) == CpuOps("cached", "avx512", "compiled earlier")


def test_a_packaged_library_of_these_sources_serves_without_a_compiler(tmp_path: Path):
    environ = prepare(tmp_path) | {"CXX": "missing"}
    library.PACKAGED.write_text(f"tgis sources {build.digest_sources()}")

    opened = open_with(tmp_path, environ)

    assert (opened.kernels, opened.why) == ("avx512", "")
    assert opened.cdll is not None
    assert opened.cdll.path == str(library.PACKAGED)  # type: ignore[attr-defined]
    assert describe(tmp_path, environ).state == "packaged"
    assert open_with(tmp_path, environ) == opened
    assert (tmp_path / "tested").read_text() == "avx512 "


def test_a_packaged_library_of_other_sources_is_compiled_anew(tmp_path: Path):
    environ = prepare(tmp_path)
    library.PACKAGED.write_text("tgis sources 0123456789abcdef")

    assert describe(tmp_path, environ).state == "compiles"
    assert open_with(tmp_path, environ).kernels == "avx512"
    assert read_calls(tmp_path)


def test_a_library_that_cannot_be_loaded_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    environ = prepare(tmp_path)
    open_with(tmp_path, environ)
    (damaged,) = (tmp_path / "cache/tgis/cpu_ops").glob("*.so")
    damaged.write_text("half")

    def load(path: str) -> Any:
        if Path(path).read_text() == "half":
            raise OSError("file too short")
        return SimpleNamespace(path=path)

    monkeypatch.setattr(interface, "load", load)

    assert open_with(tmp_path, environ).kernels == "avx512"
    assert damaged.read_text() == "made\n"


@pytest.mark.parametrize("num_bytes", [0, 10, 1000, 100_000, -1])
def test_a_truncated_library_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int):
    """Most of these would end the process that loads them with SIGBUS."""
    environ = prepare(tmp_path)
    open_with(tmp_path, environ)
    (damaged,) = (tmp_path / "cache/tgis/cpu_ops").glob("*.so")
    damaged.write_bytes(Path(_ctypes.__file__).read_bytes()[:num_bytes])
    load = ctypes.CDLL
    monkeypatch.undo()
    monkeypatch.setattr(library, "PACKAGED", tmp_path / "packaged.so")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: damaged.read_text() != "made\n" and load(path))
    monkeypatch.setattr(interface, "SIGNATURES", {})

    assert library.build_and_load(damaged.parent, build.find_compiler(environ), SETS, note([]), environ) == (
        damaged,
        False,
    )


def test_another_library_under_its_name_is_compiled_again(tmp_path: Path):
    other = tmp_path / "library.so"
    other.write_bytes(Path(_ctypes.__file__).read_bytes())
    with pytest.raises(AttributeError):
        REAL_LOAD(str(other))

    assert str(other) not in Path("/proc/self/maps").read_text()  # so what is loaded next is the file of that name


def test_what_serves_is_foreseen_where_nothing_may_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    environ = prepare(tmp_path)

    def refuse(path: object, **_: object) -> os.stat_result:
        if "cpu_ops" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return STAT(path)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)

    assert describe(tmp_path, environ).state == "compiles"


def test_without_a_cache_the_library_is_compiled_into_the_directory_of_the_run(tmp_path: Path):
    (tmp_path / "file").touch()
    environ = prepare(tmp_path) | {"XDG_CACHE_HOME": str(tmp_path / "file")}

    opened = open_with(tmp_path, environ, {"run_dir": tmp_path / "run"})

    assert (opened.kernels, opened.why) == ("avx512", "")
    assert len(list((tmp_path / "run" / library.PLACE).glob("*.so"))) == 1


def test_without_a_directory_of_the_run_a_temporary_one_is_removed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "file").touch()
    environ = prepare(tmp_path) | {"XDG_CACHE_HOME": str(tmp_path / "file")}

    assert open_with(tmp_path, environ).kernels == "avx512"
    assert list_names(tmp_path / "temporary") == []


def test_full_disks_everywhere_leave_the_torch_operations_and_a_sentence(tmp_path: Path):
    environ = prepare(tmp_path, 'echo "error: x.s: No space left on device" >&2; exit 1')

    opened = open_with(tmp_path, environ, {"run_dir": tmp_path / "run"})

    assert opened.cdll is None
    assert opened.why == (
        "The slower torch operations are used: others could not be compiled ("
        f"{tmp_path}/cache/tgis/cpu_ops: error: x.s: No space left on device; "
        f"{tmp_path}/run/cpu_ops: error: x.s: No space left on device)."
    )


@pytest.mark.parametrize(
    ("compiler", "flags", "asked", "why"),
    [
        ("missing", "", {}, "CXX names missing, which is not installed"),
        ("", "sse", {}, "this CPU has neither AVX2 nor AVX-512"),
        ("", "", {"dtype": "float16"}, "the compiled ones compute in float32 or bfloat16, not in float16"),
    ],
)
def test_what_keeps_the_compiled_operations_from_serving_is_foreseen(
    tmp_path: Path, compiler: str, flags: str, asked: dict[str, str], why: str
):
    environ = prepare(tmp_path) | ({"CXX": compiler} if compiler else {})
    cpuinfo = write_cpuinfo(tmp_path, flags) if flags else write_cpuinfo(tmp_path)

    opened = library.open_library(note([]), environ=environ, cpuinfo=cpuinfo, **asked)
    foreseen = library.describe_cpu_ops("auto", asked.get("dtype", "float32"), environ, cpuinfo)

    assert opened == library.Opened(why=f"The slower torch operations are used: {why}.")
    assert foreseen == CpuOps("reference", "", why)


def test_the_option_may_ask_for_the_torch_operations(tmp_path: Path):
    environ = prepare(tmp_path)

    assert open_with(tmp_path, environ, {"choice": "reference"}) == library.Opened(
        why="The slower torch operations are used: --cpu-ops is reference."
    )
    assert describe(tmp_path, environ, "reference") == CpuOps("reference", "", "--cpu-ops is reference")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("verdict", "found"),
    [
        ("print('[\"linear\", \"norm\"]' if name == 'avx512' else '[]')", "linear, norm"),
        ("os.kill(os.getpid(), signal.SIGILL) if name == 'avx512' else print('[]')", "killed by SIGILL"),
    ],
)
def test_kernels_that_fail_their_self_test_are_replaced_by_the_next_and_not_tested_again(
    tmp_path: Path, verdict: str, found: str
):
    environ = prepare(tmp_path, verdict=verdict)

    opened = open_with(tmp_path, environ)

    reason = f"self-tests fail on this machine, of avx512: {found}"
    assert (opened.kernels, opened.why) == ("avx2", f"Operations for avx2 are used ({reason}).")
    assert open_with(tmp_path, environ) == opened
    assert describe(tmp_path, environ) == CpuOps("cached", "avx2", reason)
    assert (tmp_path / "tested").read_text() == "avx512 avx2 "


def test_the_torch_operations_serve_if_all_kernels_fail(tmp_path: Path):
    environ = prepare(tmp_path, verdict="print('[\"linear\"]')")

    opened = open_with(tmp_path, environ)

    reason = "self-tests fail on this machine, of avx512: linear; of avx2: linear"
    assert opened == library.Opened(why=f"The slower torch operations are used: {reason}.")
    assert describe(tmp_path, environ) == CpuOps("reference", "", reason)


@pytest.mark.parametrize(
    ("verdict", "found"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os.abort()", "killed by SIGABRT"),
        ("sys.exit('no memory')", "no memory"),
        ("print('nonsense')", "the test prints no result"),
    ],
)
def test_a_self_test_that_the_machine_disturbed_is_repeated_at_the_next_start(tmp_path: Path, verdict: str, found: str):
    environ = prepare(tmp_path, verdict=verdict)
    assert f"of avx512: {found}; of avx2: {found}." in open_with(tmp_path, environ).why

    (tmp_path / f"{TEST}.py").write_text("print('[]')")

    assert open_with(tmp_path, environ).kernels == "avx512"


def test_a_self_test_without_a_result_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "SELF_TEST_S", 0.5)
    environ = prepare(tmp_path, verdict="import time; time.sleep(60)")

    assert "avx512: no result within 0 s" in open_with(tmp_path, environ).why


def test_a_verdict_of_another_machine_does_not_count(tmp_path: Path):
    environ = prepare(tmp_path)
    open_with(tmp_path, environ)
    (file,) = (tmp_path / "cache/tgis/cpu_ops").glob("*.json")
    file.rename(file.with_name(f"{file.name.partition('-')[0]}-other.json"))

    open_with(tmp_path, environ)

    assert json.loads(file.read_text()) == {"avx512": []}
    assert (tmp_path / "tested").read_text() == "avx512 avx512 "


# -- with the compiler of this machine


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The library that this machine's servers use, compiled by the first test that needs it."""
    monkeypatch.undo()
    opened = library.open_library(note([]))
    assert opened.cdll is not None, opened.why
    assert opened.why == ""
    return opened.cdll


class WithoutRunning:
    """A library that computes nothing."""

    def __init__(self, real: ctypes.CDLL) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name in ("tgis_run", "tgis_sample") else getattr(self.real, name)


@pytest.mark.skipif(not find_usable(), reason="no kernels for this CPU")
def test_kernels_for_this_cpu_pass_their_self_test_and_wrong_results_do_not(real: ctypes.CDLL):
    names = [each.name for each in find_usable()]

    assert [self_test.run(real, name) for name in names] == [[] for _ in names]
    assert self_test.run(WithoutRunning(real), names[0]) == [*self_test.TESTS]  # type: ignore[arg-type]
    assert self_test.run(real, "sse") == ["the library has no kernels for sse"]


@pytest.mark.skipif(not find_usable(), reason="no kernels for this CPU")
def test_what_serves_is_foreseen_once_it_has_been_compiled(real: ctypes.CDLL):
    foreseen = library.describe_cpu_ops("auto", "bfloat16", os.environ)

    assert foreseen.state in ("cached", "packaged")
    assert foreseen.kernels == find_usable()[0].name
