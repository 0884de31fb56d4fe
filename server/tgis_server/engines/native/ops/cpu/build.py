"""Compiles the operations into a library, one object for each instruction set. Imports no torch, and nothing heavy.

The library has a C interface and uses neither torch's headers nor Python's, so it depends on the compiler and its
flags alone. Shards call this when they load, and so does whatever builds the wheel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tgis_server.engines.native.ops.cpu.instruction_sets import InstructionSet

Progress = Callable[[str, int, int], None]  # as in engines/api.py

SOURCES = Path(__file__).with_name("csrc")
KERNELS = "kernels.cpp"  # compiled for each instruction set; other sources are compiled once
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility-inlines-hidden"),
    *("-fno-math-errno", "-ffp-contract=off"),
)
# The C++ library is linked dynamically, as torch links it: the operations need less of it than torch, and a static copy
# would need a newer C library.
LINK = ("-shared", "-pthread", "-Wl,--build-id=none")
COMPILERS = ("c++", "g++", "clang++")

COMPILING = "compiling the CPU operations"
VERSION_S = 5.0  # for a compiler to say what it is; takes milliseconds
COMPILE_S = 240.0  # for a command of the compiler; less than --startup-timeout, as no progress is seen meanwhile
OBJECT_S = 15.0  # CPU time for one instruction set; the portable sources take 3 together
TURN_S = 2 * COMPILE_S  # how long another process may compile before this one gives up
POLL_S = 0.1
MAX_KEPT = 4  # libraries in a cache: of other versions, compilers and machines
SCRATCH = ".build-"
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EACCES})
# What a compiler says if it cannot write: another place may do. Its messages are in English, see `run`.
CANNOT_WRITE = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG))


class CannotBuild(Exception):
    """The message is a clause: why there is no library."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler that runs."""

    command: tuple[str, ...]
    version: str  # the first line of what it says of itself

    @property
    def name(self) -> str:
        return shlex.join(self.command)


def find_compiler(environ: Mapping[str, str]) -> Compiler:
    """The compiler that $CXX names or, if it is not set, the first of the usual names that runs.

    Raises:
        CannotBuild: there is none.
    """
    named = environ.get("CXX", "").strip()
    try:
        candidates = [tuple(shlex.split(named))] if named else [(name,) for name in COMPILERS]
    except ValueError as error:
        raise CannotBuild(f"CXX is {named}, which is not a command ({str(error).lower()})") from error
    problems: list[str] = []
    for command in candidates:
        if shutil.which(command[0], path=environ.get("PATH")):
            try:
                output = run((*command, "--version"), Path("/"), environ, VERSION_S)
                return Compiler(command, output.partition("\n")[0])
            except (CannotBuild, OSError) as error:
                problems.append(str(error))
    if problems:
        raise CannotBuild("; ".join(problems))
    if named:
        raise CannotBuild(f"CXX names {named}, which is not installed")
    raise CannotBuild("there is no C++ compiler (install g++ or clang++, or name one in CXX)")


def digest_sources() -> str:
    """Names this version of the sources; compiled into the library, which Python must understand."""
    return digest(part for path in list_sources() for part in (path.name.encode(), path.read_bytes()))


def digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d " % len(part) + part)
    return found.hexdigest()[:16]


def list_sources() -> list[Path]:
    return sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))


def name_library(compiler: Compiler, sets: Sequence[InstructionSet]) -> str:
    """The name of a library's file in a cache: two libraries with the same name are alike."""
    names = (each.name for each in sets)
    made_with = (digest_sources(), compiler.name, compiler.version, *FLAGS, *LINK, *names)
    return f"{digest(text.encode() for text in made_with)}.so"


def estimate_seconds(sets: Sequence[InstructionSet]) -> float:
    """How long compiling takes on an idle machine."""
    return OBJECT_S * math.ceil(len(sets) / len(os.sched_getaffinity(0)))


def build_in(
    directory: Path, compiler: Compiler, sets: Sequence[InstructionSet], progress: Progress, environ: Mapping[str, str]
) -> Path:
    """The library in a cache directory, compiled if it is not there yet. One process at a time compiles.

    Raises:
        OSError: nothing can be written there, or others could replace the library.
        CannotBuild: the compiler fails, or another process takes too long.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(directory)
    library = directory / name_library(compiler, sets)
    if library.exists():
        os.utime(library)
        return library
    with take_turn(directory, progress) as is_exclusive:
        if library.exists():
            return library
        if is_exclusive:
            remove_leftovers(directory)
        compile_library(library, compiler, sets, progress, environ)
        return library


def check_private(directory: Path) -> None:
    """
    Raises:
        PermissionError: other users can write here, so what is here may be theirs.
    """
    state = directory.stat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "other users can write there", str(directory))


@contextlib.contextmanager
def take_turn(directory: Path, progress: Progress) -> Iterator[bool]:
    """Keep other processes from compiling in this directory; the kernel lets go of the lock if this one dies.

    Yields:
        Whether others are kept out; ``False`` if the file system has no locks.

    Raises:
        CannotBuild: another process has been compiling for too long.
    """
    with (directory / "lock").open("a+") as file:
        give_up_at = time.monotonic() + TURN_S
        while (is_exclusive := try_lock(file.fileno())) is None:
            file.seek(0)
            holder = f"process {file.read().strip() or 'unknown'}"
            if time.monotonic() > give_up_at:
                raise CannotBuild(f"{holder} has been compiling for more than {TURN_S:.0f} s")
            progress(f"waiting for {holder}, which is {COMPILING}", 0, 0)
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield is_exclusive


def try_lock(descriptor: int) -> bool | None:
    """Whether the lock is ours; ``None`` if another process has it, ``False`` if there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def remove_leftovers(directory: Path) -> None:
    """Remove what killed builds have left, and the oldest libraries with their verdicts. The caller has the lock."""
    for scratch in directory.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)
    newest_first = sorted(directory.glob("*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    for library in newest_first[MAX_KEPT - 1 :]:
        for path in directory.glob(f"{library.stem}*"):
            path.unlink(missing_ok=True)


def compile_library(
    library: Path,
    compiler: Compiler,
    sets: Sequence[InstructionSet],
    progress: Progress,
    environ: Mapping[str, str],
) -> None:
    """Compile for these instruction sets. The file is complete from the moment it exists.

    Raises:
        OSError: it cannot be written.
        CannotBuild: the compiler fails.
    """
    progress(COMPILING, 0, 0)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=library.parent))
    try:
        environ = {**environ, "TMPDIR": str(scratch)}
        objects = compile_objects(scratch, compiler, sets, progress, environ)
        link(scratch / library.name, compiler, objects, environ)
        with (scratch / library.name).open("rb") as file:
            os.fsync(file.fileno())
        (scratch / library.name).replace(library)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def compile_objects(
    scratch: Path,
    compiler: Compiler,
    sets: Sequence[InstructionSet],
    progress: Progress,
    environ: Mapping[str, str],
) -> list[Path]:
    """One object per instruction set, and those that any CPU runs, in the order in which they must be linked.

    Of an inline function that several objects have, the linker keeps the first. So the portable objects come first,
    then the others from the least demanding on: no CPU runs a copy that was compiled for a better one.
    """
    version = f'-DTGIS_VERSION="{digest_sources()}"'
    portable = [path for path in list_sources() if path.suffix == ".cpp" and path.name != KERNELS]
    jobs: list[tuple[str, str, tuple[str, ...]]] = [(path.stem, path.name, (version,)) for path in portable]
    jobs += [(each.name, KERNELS, each.compiler_flags) for each in reversed(sets)]

    def compile_one(job: tuple[str, str, tuple[str, ...]]) -> Path:
        name, source, flags = job
        target = scratch / f"{name}.o"
        seed = f"-frandom-seed={name}"  # equal sources make equal objects
        run((*compiler.command, *FLAGS, *flags, seed, "-c", source, "-o", str(target)), SOURCES, environ)
        progress(COMPILING, 0, 0)
        return target

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        slowest_first = {job: pool.submit(compile_one, job) for job in reversed(jobs)}
        try:
            return [slowest_first[job].result() for job in jobs]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def link(library: Path, compiler: Compiler, objects: Iterable[Path], environ: Mapping[str, str]) -> None:
    run((*compiler.command, *LINK, *map(str, objects), "-o", str(library)), SOURCES, environ)


def run(command: Sequence[str], directory: Path, environ: Mapping[str, str], limit_s: float | None = None) -> str:
    """Run the compiler, and return what it prints.

    It stays in its caller's process group, so Ctrl-C and the launcher, which signals whole groups, end it too.

    Args:
        limit_s: how long it may take; ``None``: ``COMPILE_S``.

    Raises:
        OSError: it cannot write.
        CannotBuild: it fails otherwise.
    """
    try:
        child = subprocess.Popen(  # noqa: S603  the user's compiler
            command,
            cwd=directory,
            env={**environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise CannotBuild(f"{command[0]} cannot be started ({error.strerror})") from error
    with child:
        try:
            output, _ = child.communicate(timeout=limit_s or COMPILE_S)
        except BaseException as error:
            child.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CannotBuild(f"{command[0]} took longer than {error.timeout:.0f} s") from None
            raise
    if child.returncode == 0:
        return output
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if refused := [line for line in lines if any(text in line for text in CANNOT_WRITE)]:
        raise OSError(errno.ENOSPC, refused[0])
    why = lines[-1] if lines else f"exit code {child.returncode}"
    raise CannotBuild(f"{command[0]} failed ({why})")
