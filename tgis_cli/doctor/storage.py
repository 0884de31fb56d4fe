"""Checks of the run directory, the log file, the model cache, and the user's home."""

from __future__ import annotations

import os
import pwd
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tgis_cli.decide.preflight import MAX_SOCKET_PATH_BYTES, check_socket
from tgis_cli.doctor.verdict import Subject, Verdict, failed, ok, warn
from tgis_cli.machine.words import count
from tgis_cli.model_files import find_cache_dir, is_homeless, list_folders
from tgis_cli.model_files.cache.disk import count_free_bytes, describe_free_space
from tgis_cli.runs.run_dir import find_leftovers, sort_failed
from tgis_cli.runs.servers import CAUSE_FILE, FRONTEND_SOCKET, PREFIX, find_running
from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.host import cgroup
from tgis_server.words.sizes import GIB, format_bytes

RUN_DIR_BYTES = 1 << 20  # ten times what a run writes
RUN_DIR_INODES = 64
LONGEST_NAME = len(f"/{PREFIX}12345678/{FRONTEND_SOCKET}")  # that a run adds to the path of its parent directory
MIN_CACHE_BYTES = GIB  # needed for a model
CACHE_PATIENCE_S = 1.0  # on a slow network file system, some models are skipped
MAX_PROBLEMS = 5
CACHE_FIX = "Repair it, or name another cache with HF_HUB_CACHE."


def check_run_dir(subject: Subject) -> Iterator[Verdict]:
    """The directory for sockets and failure logs must be writable, have free space, and a short path."""
    try:
        parent = (subject.config.run_dir or Path(tempfile.gettempdir())).resolve()
    except OSError as error:  # no temporary directory is writable
        yield failed(failures.RUN_DIR_NOT_WRITABLE.error(parent="a temporary directory", reason=error.strerror))
        return
    if not os.access(parent, os.W_OK | os.X_OK):
        reason = "Permission denied" if parent.is_dir() else "No such directory"
        yield failed(failures.RUN_DIR_NOT_WRITABLE.error(parent=parent, reason=reason))
        return
    excess = len(os.fsencode(parent)) + LONGEST_NAME - MAX_SOCKET_PATH_BYTES
    if excess > 0:
        path = f"{parent}/{PREFIX}.../{FRONTEND_SOCKET}"
        yield failed(failures.SOCKET_PATH_TOO_LONG.error(path=path, excess=excess))
    if subject.resolved is not None and subject.config.shard_uds_path:
        try:
            for rank in range(subject.num_shard):
                check_socket(subject.resolved.run.shard_socket(rank))
        except TgisError as error:
            yield failed(error)
    status = subject.host.statvfs(parent)
    free_bytes = count_free_bytes(status)
    if (free_bytes is not None and free_bytes < RUN_DIR_BYTES) or has_few_inodes(status, RUN_DIR_INODES):
        yield failed(
            failures.RUN_DIR_FULL.error(
                need_bytes=RUN_DIR_BYTES, parent=parent, free_bytes=free_bytes or 0, free_inodes=status.f_favail
            )
        )
    else:
        noexec = ", mounted noexec, which is fine" if status.f_flag & os.ST_NOEXEC else ""
        yield ok(
            f"Run directories are created in {parent}: {describe_free_space(free_bytes)}{noexec}.", path=str(parent)
        )


def check_log_file(subject: Subject) -> Iterator[Verdict]:
    """Whether it can be written, without creating it."""
    if (file := subject.config.log_file) is None:
        return
    target = file if file.exists() else file.parent
    if os.access(target, os.W_OK) and not file.is_dir():
        yield ok(f"Logs are also written to {file}.")
    else:
        reason = "Permission denied" if target.exists() else "No such file or directory"
        yield failed(failures.LOG_FILE_NOT_WRITABLE.error(path=file, reason="Is a directory" * file.is_dir() or reason))


def has_few_inodes(status: os.statvfs_result, needed: int) -> bool:
    """False for file systems without a fixed number of inodes, such as btrfs."""
    return status.f_files > 0 and status.f_favail < needed


def check_runs(subject: Subject) -> Iterator[Verdict]:
    """This user's running servers, and leftovers of failed ones."""
    for server in find_running(subject.host.root / "proc"):
        if server.is_obscure:
            reason = "has been deleted" if server.is_lost else "is of another version"
            yield warn(
                f"The run directory {server.run_dir} of a running server (pid {server.pid}) {reason}, so its state "
                "cannot be queried.",
                f"Stop it with `tgis stop {server.pid}`, and start it again.",
            )
            continue
        state = "running" if server.has_been_ready else "starting"
        where = f" at {server.grpc}" if server.grpc else ""
        yield ok(
            f"A server is {state}: {server.model}{where}, in {server.run_dir}.",
            path=server.run_dir,
            pid=server.pid,
            model=server.model,
            grpc=server.grpc,
            http=server.http,
        )
    try:
        parent = (subject.config.run_dir or Path(tempfile.gettempdir())).resolve()
    except OSError:  # reported by check_run_dir
        return
    if kept := sort_failed(find_leftovers(parent)):
        cause = cgroup.read_text(kept[0] / CAUSE_FILE).strip()
        paths = [str(path) for path in kept]
        why = f": {cause}" if cause else "."
        found = ok(f"{count(len(kept), 'failed run')} left a directory, the latest {kept[0]}{why}", paths=paths)
        yield replace(found, fix=f"`rm -r {shlex.join(paths)}` removes {'it' if len(paths) == 1 else 'them'}.")


def check_cache(subject: Subject) -> Iterator[Verdict]:
    """The cache that hub ids are looked up in must be readable; only downloads write to it."""
    try:
        cache_dir, source = find_cache_dir(subject.environ)
    except TgisError as error:
        yield replace(failed(error), fix="Unset one of them.")
        return
    named = {"source": source, "path": str(cache_dir)}
    where = f"The cache is {cache_dir} (from {source})"
    if is_homeless(cache_dir):
        yield warn(
            f"There is no cache: HOME is not set, and user {subject.host.uid()} has no home directory.",
            "Set HF_HUB_CACHE to serve models by hub id.",
            **named,
        )
        return
    if not subject.environ.get(source, "unset"):
        yield warn(f"{where}, the current directory, as {source} is empty.", "Unset it, or name a directory.", **named)
    try:
        is_dir = stat.S_ISDIR(os.stat(cache_dir).st_mode)
    except FileNotFoundError:
        yield ok(f"{where}, which does not exist yet.", **named)
        return
    except OSError as error:
        yield warn(f"{where}, which cannot be reached: {error.strerror}.", CACHE_FIX, **named)
        return
    if not is_dir:
        yield warn(f"{where}, which is not a directory.", CACHE_FIX, **named)
        return
    if not os.access(cache_dir, os.R_OK | os.X_OK):
        yield warn(
            f"{where}, but user {subject.host.uid()} may not read it.",
            "Grant that user or its group access, or name another cache with HF_HUB_CACHE.",
            **named,
        )
        return
    if not os.access(cache_dir, os.W_OK):
        yield ok(f"{where}, read-only: enough for serving, not for downloads.", **named)
        return
    status = subject.host.statvfs(cache_dir)
    free_bytes = count_free_bytes(status)
    if (free_bytes is not None and free_bytes < MIN_CACHE_BYTES) or has_few_inodes(status, 1):
        yield warn(
            f"{where}, where {format_bytes(free_bytes or 0)} and {status.f_favail} inodes are free.",
            "Free space for downloads (`tgis models rm`), or name another cache with HF_HUB_CACHE.",
            **named,
        )
    else:
        yield ok(f"{where}: {describe_free_space(free_bytes)}.", **named)


def check_cache_content(subject: Subject) -> Iterator[Verdict]:
    """Links that are broken or leave a model's folder, missing snapshots, damaged and unfinished files."""
    from tgis_cli.model_files.cache.disk import INCOMPLETE
    from tgis_cli.model_files.cache.folder import CacheFolder
    from tgis_cli.model_files.inventory import list_revisions

    try:
        cache_dir = find_cache_dir(subject.environ)[0]
        folders = list_folders(cache_dir)
    except (TgisError, OSError):  # reported by check_cache
        return
    deadline, problems, num_seen, incomplete = time.monotonic() + CACHE_PATIENCE_S, [], 0, []
    for model, root in folders.items():
        if time.monotonic() > deadline:
            break
        num_seen += 1
        try:
            for revision in list_revisions(CacheFolder(cache_dir, model), model):
                problems += [f"{model}: {problem}." for problem in revision.problems]
            incomplete += [(model, file.stat().st_size) for file in root.glob(f"blobs/*{INCOMPLETE}")]
        except OSError as error:
            problems.append(f"{model}: {error.filename} cannot be read: {error.strerror}.")
    yield from map(warn, problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        more = count(len(problems) - MAX_PROBLEMS, "more problem")
        yield warn(f"The cache has {more}.", "`tgis models` lists all.")
    if incomplete:
        names = ", ".join(sorted({model for model, _ in incomplete})[:MAX_PROBLEMS])
        size = format_bytes(sum(num_bytes for _, num_bytes in incomplete))
        yield warn(
            f"The cache has {count(len(incomplete), 'unfinished file')} with {size}, of {names}.",
            "`tgis download-weights MODEL` resumes them, `tgis models rm MODEL` removes them.",
        )
    if folders and not problems:
        yield ok(f"{num_seen} of {count(len(folders), 'cached model')} checked: nothing is missing or damaged.")


def check_user(subject: Subject) -> Iterator[Verdict]:
    """The user. None of a name, a home, and a writable root file system is needed."""
    uid, home = subject.host.uid(), subject.environ.get("HOME", "")
    try:
        name = f" ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        name = " (no name)"
    if not home:
        where = "HOME is not set"
    elif os.access(home, os.W_OK):
        where = f"HOME is {home}"
    else:
        where = f"HOME is {home}, not writable"
    is_read_only = subject.host.statvfs(Path("/")).f_flag & os.ST_RDONLY
    root = "the root file system is read-only" if is_read_only else "the root file system is writable"
    yield ok(f"User {uid}{name}; {where}; {root}.", uid=uid, home=home or None)
