"""The running servers of this user, found by the run directory that every launcher holds open and locked.

There is no registry that could go stale: the kernel closes the directory when its launcher ends, whatever kills it.
This module reads only the two files in that directory, ``serve.json`` and, once the server is ready, ``ready.json``.
A launcher whose directory has been deleted still holds it open, so it is found too, with what its command line says;
so is a launcher of another version, whose files have other fields. The module imports little, because `tgis health`
may need it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tgis_server.words.addresses import WILDCARDS, bracket

PREFIX = "tgis-"  # of the names of run directories
# In a run directory. The server writes the first two; `Run` names them too.
RUN_FILE = "serve.json"
FRONTEND_SOCKET = "frontend.sock"
READY_FILE = "ready.json"
CAUSE_FILE = "errors/cause.txt"  # marks the directory of a failed run, unlike that of a killed launcher
PROC = Path("/proc")
DELETED = " (deleted)"  # the kernel adds it to the name of an open directory that is gone
UNKNOWN = "unknown"  # model of a server whose run directory is gone
USUAL_DRAIN_S = 90.0  # with the default options
RUN_FIELDS = {"model_id": str, "label": str, "num_shard": int, "config": dict}
CONFIG_FIELDS = {
    "host": str,
    "grpc_port": int,
    "port": int,
    "tls_cert_path": str | None,
    "tls_client_ca_cert_path": str | None,
    "http_tls": str,
    "drain_delay": int | float,
    "drain_timeout": int | float,
    "shard_uds_path": str | None,
}
READY_FIELDS = {"grpc_port": int, "http_port": int, "tls": dict | None, "pids": dict}
TLS_FIELDS = {"certificate": str, "names": list}
START_TIME_FIELD = 19  # of /proc/PID/stat after the name in parentheses; in clock ticks since boot


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a server's gRPC port uses TLS, as far as a client must know."""

    certificate: Path  # absolute
    names: tuple[str, ...]  # in the certificate; empty while the server starts
    demands_client_certificate: bool


@dataclass(frozen=True, slots=True)
class RunningServer:
    """One launcher and what it has written about its server."""

    pid: int
    door: Path  # reaches the run directory even if it is mounted only where the launcher runs
    run_dir: str  # as the launcher names it
    model: str
    label: str  # "demo model", "rehearsal" or empty
    has_been_ready: bool
    is_in_this_network: bool  # of two network namespaces, neither reaches the other's loopback addresses
    host: str  # at which this machine reaches it, without brackets
    grpc_port: int | None  # None: any free port, not known before the server is ready
    http_port: int | None
    tls: ServerTls | None
    http_tls: str  # "off", "server" or "mutual"
    start_ticks: int  # when the launcher started, in clock ticks since boot: with its pid, an identity
    drain_s: float  # the longest time that its calls get to finish when it is stopped
    shard_sockets: tuple[Path, ...]
    pids: dict[str, int] = field(hash=False)  # of the children by name; empty while the server starts
    is_lost: bool = False  # its run directory has been deleted
    is_of_another_version: bool = False  # its files have other fields

    @property
    def is_obscure(self) -> bool:
        """Whether so little is known about the server that it can be stopped, but not queried."""
        return self.is_lost or self.is_of_another_version

    @property
    def is_looking(self) -> bool:
        """Whether its launcher still looks at the machine and the model, so that it has no shards yet."""
        return not (self.shard_sockets or self.is_obscure)

    @property
    def title(self) -> str:
        """Its model, marked if the server only rehearses it."""
        is_plain = self.label in ("", f"{self.model} model")
        return self.model if is_plain else f"{self.model} ({self.label})"

    @property
    def age_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_ticks / os.sysconf("SC_CLK_TCK")

    @property
    def is_alive(self) -> bool:
        """Whether this launcher, rather than another process with its pid, is still running."""
        try:
            state, ticks = read_state(self.door.parents[1])
        except (OSError, ValueError):
            return False
        return ticks == self.start_ticks and state not in "ZX"

    @property
    def is_frozen(self) -> bool:
        """Whether the launcher is stopped (SIGSTOP)."""
        try:
            return read_state(self.door.parents[1])[0] in "Tt"
        except (OSError, ValueError):
            return False

    @property
    def grpc(self) -> str | None:
        """``HOST:PORT``."""
        return f"{bracket(self.host)}:{self.grpc_port}" if self.grpc_port else None

    @property
    def http(self) -> str | None:
        """``http://HOST:PORT`` or ``https://HOST:PORT``."""
        scheme = "http" if self.http_tls == "off" else "https"
        return f"{scheme}://{bracket(self.host)}:{self.http_port}" if self.http_port else None

    @property
    def names(self) -> set[str]:
        """What people call it: its model, the last part of the model's name, its gRPC address and port, and its pid."""
        model = self.model.rstrip("/")
        address = {self.grpc, str(self.grpc_port)} if self.grpc else set()
        return {self.model, model, model.rpartition("/")[2], str(self.pid), *address}


def find_running(proc: Path = PROC) -> list[RunningServer]:
    """All running servers of this user, oldest first, wherever their run directory is.

    Servers of other users, and those outside this namespace of process ids, stay hidden.
    """
    found = [server for pid in list_pids(proc) if (server := find_server(pid, proc)) is not None]
    return sorted(found, key=lambda server: (server.start_ticks, server.pid))


def find_at_port(port: int, pid: int = 0) -> RunningServer | None:
    """This user's running server, but not of this process, that listens on a port here; ``None`` if there is none.

    Args:
        pid: that of the process that listens on the port, if the system reveals it.
    """
    for server in find_running():
        if server.pid == os.getpid() or not server.is_in_this_network:
            continue
        # While a server starts, its children are not known; before that, it has none.
        is_known = bool(pid) and (server.has_been_ready or server.is_looking)
        if pid in (server.pid, *server.pids.values()) if is_known else port in (server.grpc_port, server.http_port):
            return server
    return None


def find_server(pid: int, proc: Path = PROC) -> RunningServer | None:
    """The server whose launcher is this process of this user; ``None`` if it is not a launcher."""
    try:
        if (proc / str(pid)).stat().st_uid != os.getuid():
            return None
        for door in list_run_dirs(proc / str(pid)):
            if is_locked_by_holder(door):
                return read_obscure_server(pid, door, proc) if is_deleted(door) else read_server(pid, door, proc)
    except (OSError, ValueError):
        pass  # it has ended meanwhile, belongs to someone else, or its file is not JSON
    return None


def list_pids(proc: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(proc) if name.isdigit()]
    except OSError:  # not mounted
        return []


def list_run_dirs(process: Path) -> Iterator[Path]:
    """The open run directories of a process, as links in ``/proc`` that lead to them."""
    for name in os.listdir(process / "fd"):
        link = process / "fd" / name
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            target = os.readlink(link)
            is_ours = target.rpartition("/")[2].startswith(PREFIX)
            if is_ours and ((link / RUN_FILE).is_file() or is_deleted(link)):
                yield link


def is_deleted(door: Path) -> bool:
    """Whether an open file is a directory that has been deleted."""
    target = os.readlink(door)
    return target.endswith(DELETED) and door.is_dir() and not os.path.lexists(target)


def is_locked_by_holder(door: Path) -> bool:
    """Whether this descriptor itself has the lock: others, such as a file manager's, may have the directory open."""
    facts = (door.parents[1] / "fdinfo" / door.name).read_text()
    return any(line.startswith("lock:") and " FLOCK " in line and " WRITE " in line for line in facts.splitlines())


def read_server(pid: int, door: Path, proc: Path) -> RunningServer:
    """
    Raises:
        OSError, ValueError: the files are missing or not JSON.
    """
    run, ready = json.loads((door / RUN_FILE).read_text()), read_ready(door)
    if not is_understood(run, ready):
        return read_obscure_server(pid, door, proc)
    config = run["config"]
    bound = ready.get("grpc_port") or config["grpc_port"], ready.get("http_port") or config["port"]
    return RunningServer(
        pid=pid,
        door=door,
        run_dir=os.readlink(door),
        model=str(run["model_id"]),
        label=str(run["label"]),
        has_been_ready=bool(ready),
        is_in_this_network=is_in_this_network(proc / str(pid)),
        host=WILDCARDS.get(config["host"], config["host"]),
        grpc_port=bound[0] or None,
        http_port=bound[1] or None,
        tls=read_tls(config, ready, proc / str(pid)),
        http_tls=str(config["http_tls"]),
        start_ticks=read_state(proc / str(pid))[1],
        drain_s=float(config["drain_delay"]) + float(config["drain_timeout"]),
        shard_sockets=tuple(list_shard_sockets(door, config["shard_uds_path"], int(run["num_shard"]))),
        pids=dict(ready.get("pids", {})),
    )


def read_obscure_server(pid: int, door: Path, proc: Path) -> RunningServer:
    """A server whose run directory has been deleted, or has files with other fields.

    Raises:
        OSError, ValueError: the server has ended meanwhile.
    """
    is_lost = is_deleted(door)
    command = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return RunningServer(
        pid=pid,
        door=door,
        run_dir=os.readlink(door).removesuffix(DELETED),
        model=find_model(command) or UNKNOWN,
        label="",
        has_been_ready=False,
        is_in_this_network=is_in_this_network(proc / str(pid)),
        host="127.0.0.1",
        grpc_port=None,
        http_port=None,
        tls=None,
        http_tls="off",
        start_ticks=read_state(proc / str(pid))[1],
        drain_s=USUAL_DRAIN_S,
        shard_sockets=(),
        pids={},
        is_lost=is_lost,
        is_of_another_version=not is_lost,
    )


def is_understood(run: Any, ready: Any) -> bool:
    """Whether the files of a run have the fields that are read here; ``ready.json`` may lack some."""
    return (
        has_fields(run, RUN_FIELDS)
        and has_fields(run["config"], CONFIG_FIELDS)
        and has_fields(ready, READY_FIELDS, may_lack=True)
        and has_fields(ready.get("tls") or {}, TLS_FIELDS, may_lack=True)
    )


def has_fields(facts: Any, kinds: Mapping[str, Any], *, may_lack: bool = False) -> bool:
    return isinstance(facts, dict) and all(
        isinstance(facts[name], kind) if name in facts else may_lack for name, kind in kinds.items()
    )


def find_model(command: list[str]) -> str:
    """The model in a launcher's command line, if it is the first argument or an option; otherwise empty."""
    for word, following in pairwise([*command, ""]):
        if word == "--model-name" or (word == "launch" and following[:1] != "-"):
            return following
        if word.startswith("--model-name="):
            return word.partition("=")[2]
    return ""


def read_ready(door: Path) -> Any:
    """What the server has written about itself; empty until it is ready."""
    try:
        return json.loads((door / READY_FILE).read_text())
    except FileNotFoundError:
        return {}


def read_tls(config: dict[str, Any], ready: dict[str, Any], process: Path) -> ServerTls | None:
    """
    Args:
        process: the launcher's; relative paths start in its working directory.
    """
    if not config["tls_cert_path"]:
        return None
    facts = ready.get("tls") or {}
    return ServerTls(
        Path(os.readlink(process / "cwd"), facts.get("certificate") or config["tls_cert_path"]),
        tuple(facts.get("names", ())),
        bool(config["tls_client_ca_cert_path"]),
    )


def is_in_this_network(process: Path) -> bool:
    """Whether a process shares our network namespace; where the system has no namespaces, all do."""
    try:
        return os.readlink(process / "ns/net") == os.readlink("/proc/self/ns/net")
    except OSError:
        return True


def list_shard_sockets(door: Path, prefix: str | None, num_shard: int) -> list[Path]:
    return [Path(f"{prefix}-{rank}") if prefix else door / f"shard-{rank}.sock" for rank in range(num_shard)]


def read_state(process: Path) -> tuple[str, int]:
    """State of a process, as the kernel's letter, and when it started, in clock ticks since boot.

    Raises:
        OSError, ValueError: there is no such process.
    """
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    if len(fields) <= START_TIME_FIELD:
        raise ValueError(f"{process} has no start time")
    return fields[0], int(fields[START_TIME_FIELD])
