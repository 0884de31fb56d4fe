"""Finds the compiled operations or compiles them, and chooses an instruction set that passes its self-test here.

A packaged library beside this module comes first, then one in the user's cache, then the compiler. Imports no torch:
the launcher predicts with :func:`describe_cpu_ops` what a shard will get from :func:`open_library`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tgis_server.engines.door import CpuOps
from tgis_server.engines.native.ops.cpu import build, interface
from tgis_server.engines.native.ops.cpu.build import CannotBuild, Progress
from tgis_server.engines.native.ops.cpu.instruction_sets import (
    AUTO,
    REFERENCE,
    InstructionSet,
    choose_sets,
    find_usable,
)
from tgis_server.host.cpu_flags import CPUINFO, read_cpu_flags, read_cpu_model
from tgis_server.host.interpreter import make_command, make_environment
from tgis_server.host.user_dirs import find_cache_dir

PACKAGED = Path(__file__).with_name("libtgis_cpu.so")
PLACE = "cpu_ops"  # in the user's cache, or in a run's directory
DTYPES = ("float32", "bfloat16")

SELF_TEST = "tgis_server.engines.native.ops.cpu.self_test"
SELF_TEST_SOURCE = Path(__file__).with_name("self_test.py")
SELF_TEST_S = 60.0  # takes a fraction of a second
TESTING = "testing the CPU operations"
# Not SIGABRT: C++ aborts where there is no memory or no thread.
CRASHES = frozenset({signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE})


@dataclass(frozen=True, slots=True)
class Opened:
    """The library, and which of its kernels are used."""

    cdll: ctypes.CDLL | None = None  # None: the torch operations are used
    kernels: str = ""  # the instruction set's name
    why: str = ""  # a sentence: why the best kernels, or any, are not used


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a self-test found."""

    failing: tuple[str, ...]
    is_lasting: bool = True  # another test of the same library on this machine would find the same


def open_library(
    progress: Progress,
    *,
    dtype: str = "float32",
    choice: str = AUTO,
    run_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    cpuinfo: Path = CPUINFO,
) -> Opened:
    """Load the library, after compiling and testing it if this has not been done here before.

    Args:
        progress: called with what takes time.
        dtype: that of the model.
        choice: the value of ``--cpu-ops``.
        run_dir: where a library is compiled if the user has no cache that can be written; ``None``: a directory that
            is removed at once.

    Raises:
        UsageError: this CPU does not run what ``choice`` names.
    """
    sets = choose_sets(choice, cpuinfo)
    if reason := explain_reference(sets, choice, dtype):
        return Opened(why=reference(reason).sentence)
    try:
        with contextlib.ExitStack() as stack:
            path, cdll = find_library(progress, run_dir, environ, cpuinfo, stack)
            return choose_kernels(path, cdll, sets, progress, environ, cpuinfo)
    except CannotBuild as error:
        return Opened(why=reference(str(error)).sentence)


def explain_reference(sets: Sequence[InstructionSet], choice: str, dtype: str) -> str:
    """Why the torch operations are used, whatever is installed. Empty if they need not."""
    if choice == REFERENCE:
        return "--cpu-ops is reference"
    if dtype not in DTYPES:
        return f"the compiled ones compute in {' or '.join(DTYPES)}, not in {dtype}"
    return "" if sets else "this CPU has neither AVX2 nor AVX-512"


def reference(reason: str) -> CpuOps:
    return CpuOps("reference", "", reason)


# -- where the library is


def find_library(
    progress: Progress,
    run_dir: Path | None,
    environ: Mapping[str, str],
    cpuinfo: Path,
    stack: contextlib.ExitStack,
) -> tuple[Path, ctypes.CDLL]:
    """The library and its file, which may exist only until ``stack`` is closed.

    Raises:
        CannotBuild: there is none, and none can be made.
    """
    if is_current(PACKAGED) and (cdll := try_load(PACKAGED)):
        return PACKAGED, cdll
    compiler = build.find_compiler(environ)
    problems = []
    for place in list_places(run_dir, environ, stack):
        try:
            return build_and_load(place, compiler, find_usable(cpuinfo), progress, environ)
        except OSError as error:
            problems.append(f"{place}: {error.strerror or error}")
    raise CannotBuild(f"others could not be compiled ({'; '.join(problems)})")


def is_current(library: Path) -> bool:
    """Whether a library was compiled from the sources beside this module."""
    try:
        return build.digest_sources().encode() in library.read_bytes()
    except OSError:
        return False


def try_load(path: Path) -> ctypes.CDLL | None:
    try:
        return interface.load(str(path))
    except (OSError, AttributeError):  # for another C library, or damaged
        return None


def list_places(run_dir: Path | None, environ: Mapping[str, str], stack: contextlib.ExitStack) -> Iterator[Path]:
    """Directories in which a library may be compiled, until one can be written."""
    if (cache := find_cache_dir(environ)) is not None:
        yield cache / PLACE
    if run_dir is not None:
        yield run_dir / PLACE
    else:
        with contextlib.suppress(OSError):  # none can be written
            temporary = tempfile.TemporaryDirectory(prefix="tgis-cpu-ops-", ignore_cleanup_errors=True)
            yield Path(stack.enter_context(temporary))


def build_and_load(
    place: Path,
    compiler: build.Compiler,
    sets: Sequence[InstructionSet],
    progress: Progress,
    environ: Mapping[str, str],
) -> tuple[Path, ctypes.CDLL]:
    """See :func:`build.build_in` for errors. A damaged library is compiled again.

    Raises:
        OSError: files here cannot be loaded, for instance because they cannot be executed.
        CannotBuild: the compiler makes something else than the library.
    """
    path = place / build.name_library(compiler, sets)
    if os.path.exists(path) and try_load(path) is None:
        path.unlink(missing_ok=True)
    path = build.build_in(place, compiler, sets, progress, environ)
    try:
        return path, interface.load(str(path))
    except AttributeError as error:
        raise CannotBuild(f"what {compiler.name} makes is not the library ({error})") from error


# -- which of its kernels are used


def choose_kernels(
    path: Path,
    cdll: ctypes.CDLL,
    sets: Sequence[InstructionSet],
    progress: Progress,
    environ: Mapping[str, str],
    cpuinfo: Path,
) -> Opened:
    """The best kernels that pass the self-test, which runs once for each library and kind of machine."""
    file = find_verdict_file(path, environ, cpuinfo)
    verdicts = read_verdicts(file)
    for each in sets:
        if each.name not in verdicts:
            progress(TESTING, 0, 0)
            verdicts[each.name] = examine_kernels(path, each.name, environ)
            write_verdicts(file, verdicts)
        if not verdicts[each.name].failing:
            served = CpuOps("cached", each.name, explain_failures(verdicts))
            return Opened(cdll, each.name, served.sentence if served.reason else "")
    return Opened(why=reference(explain_failures(verdicts)).sentence)


def explain_failures(verdicts: Mapping[str, Verdict]) -> str:
    """Empty if there are none."""
    failing = [f"{name}: {', '.join(verdict.failing)}" for name, verdict in verdicts.items() if verdict.failing]
    return f"self-tests fail on this machine, of {'; of '.join(failing)}" if failing else ""


def find_verdict_file(library: Path, environ: Mapping[str, str], cpuinfo: Path) -> Path | None:
    """Beside the library; for a packaged one, in the cache. ``None``: the user has none.

    Its name changes with the machine and with the test, so that another version of the test judges again.
    """
    flags = sorted(read_cpu_flags(cpuinfo) or ())
    about = (read_cpu_model(cpuinfo), *flags, SELF_TEST_SOURCE.read_text())
    machine = build.digest(text.encode() for text in about)
    if library != PACKAGED:
        return library.with_name(f"{library.stem}-{machine}.json")
    cache = find_cache_dir(environ)
    return cache / PLACE / f"{build.digest([library.read_bytes()])}-{machine}.json" if cache else None


def read_verdicts(file: Path | None) -> dict[str, Verdict]:
    """By name of the instruction set."""
    try:
        if file is not None:
            build.check_private(file.parent)
            return {name: Verdict(tuple(failing)) for name, failing in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):  # missing or damaged: the tests run again
        pass
    return {}


def write_verdicts(file: Path | None, verdicts: Mapping[str, Verdict]) -> None:
    lasting = {name: verdict.failing for name, verdict in verdicts.items() if verdict.is_lasting}
    if file is None or not lasting:
        return
    with contextlib.suppress(OSError):  # the tests will run again
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(lasting))
        temporary.replace(file)


def examine_kernels(library: Path, name: str, environ: Mapping[str, str]) -> Verdict:
    """Run the self-test of one instruction set in a child process, which it may kill."""
    command = make_command("-m", SELF_TEST, str(library), name)
    try:
        child = subprocess.run(  # noqa: S603  our own program
            command, env=make_environment(environ), capture_output=True, text=True, timeout=SELF_TEST_S
        )
    except subprocess.TimeoutExpired:
        return Verdict((f"no result within {SELF_TEST_S:.0f} s",), is_lasting=False)
    except OSError as error:
        return Verdict((f"the test cannot be started, {error.strerror}",), is_lasting=False)
    if child.returncode == 0:
        try:
            return Verdict(tuple(json.loads(child.stdout.strip().rpartition("\n")[2])))
        except ValueError:
            return Verdict(("the test prints no result",), is_lasting=False)
    if child.returncode < 0:
        killed_by = signal.Signals(-child.returncode)
        return Verdict((f"killed by {killed_by.name}",), is_lasting=killed_by in CRASHES)
    last = child.stderr.strip().rpartition("\n")[2]
    return Verdict((last or f"exits with {child.returncode}",), is_lasting=False)


# -- without compiling


def describe_cpu_ops(
    choice: str, dtype: str, environ: Mapping[str, str] = os.environ, cpuinfo: Path = CPUINFO
) -> CpuOps:
    """What :func:`open_library` will probably find; takes a few milliseconds.

    Raises:
        UsageError: as there.
    """
    sets = choose_sets(choice, cpuinfo)
    if reason := explain_reference(sets, choice, dtype):
        return reference(reason)
    state: Literal["packaged", "cached", "compiles"] = "packaged"
    library = PACKAGED
    if not is_current(PACKAGED):
        try:
            compiler = build.find_compiler(environ)
        except CannotBuild as error:
            return reference(str(error))
        cache = find_cache_dir(environ)
        library = (cache or Path(os.devnull)) / PLACE / build.name_library(compiler, find_usable(cpuinfo))
        state = "cached" if os.path.exists(library) else "compiles"  # Path.exists raises where nothing may be read
    verdicts = read_verdicts(find_verdict_file(library, environ, cpuinfo))
    passing = [each.name for each in sets if each.name not in verdicts or not verdicts[each.name].failing]
    if not passing:
        return reference(explain_failures(verdicts))
    seconds = build.estimate_seconds(find_usable(cpuinfo))
    reasons = {
        "packaged": "packaged with TGIS",
        "cached": "compiled earlier",
        "compiles": f"compiled once, at the first start, in about {seconds:.0f} s",
    }
    return CpuOps(state, passing[0], explain_failures(verdicts) or reasons[state])
