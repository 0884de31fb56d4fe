"""Checks before any process is started: what would fail minutes later fails now, in one sentence.

Every check raises the error that ends startup.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from tgis_cli.clients.server_status import State, ask
from tgis_cli.machine.facts import Machine
from tgis_cli.machine.process_limits import ProcessLimit
from tgis_cli.model_files.tokenizer_check import check_tokenizer
from tgis_cli.relay.log_file import check_log_file
from tgis_cli.runs.servers import RunningServer, find_at_port
from tgis_server import failures
from tgis_server.engines.door import ModelSizes
from tgis_server.errors import TgisError, UsageError
from tgis_server.host.ports import find_listener, listen
from tgis_server.host.regular_file import open_regular
from tgis_server.options import ServeConfig
from tgis_server.run import Run
from tgis_server.threads import Threads
from tgis_server.words.sizes import format_bytes

logger = logging.getLogger(__name__)

PREDECESSOR_S = 5.0  # for another server to release its ports, which takes about a second after a failure
KINDS = {stat.S_IFREG: "a file", stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory"}
MAX_UNKNOWN = 3  # checks in a row in which no process is found to hold the port
MIN_ADDRESS_BYTES = 512 << 20  # a front-end with its threads needs almost as much
MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux without its terminating null


def check_before_start(run: Run, machine: Machine, sizes: ModelSizes | None) -> None:
    """All checks of a run, except for its ports. Its directory must exist.

    Args:
        sizes: those of the model, whose files have been checked; ``None`` in a rehearsal.

    Raises:
        UsageError, ModelError, NotEnoughDevices: the first problem.
    """
    check_address_space()
    config = run.config
    for flag, file in (
        ("--tls-cert-path", config.tls_cert_path),
        ("--tls-key-path", config.tls_key_path),
        ("--tls-client-ca-cert-path", config.tls_client_ca_cert_path),
    ):
        check_readable(flag, file)
    if config.log_file:
        check_log_file(config.log_file)
    check_sockets(run)
    check_tokenizer(run.model_dir)
    if sizes is not None:
        check_memory(run, machine, sizes)


def check_ports(config: ServeConfig) -> None:
    """Check that both ports are free. This check is last, as the launcher may answer probes on one of them until then.

    Raises:
        UsageError: see :func:`wait_for_port`.
    """
    wait_for_port(config.host, config.grpc_port, "--grpc-port")
    wait_for_port(config.host, config.port, "--port")


def check_processes(limits: Sequence[ProcessLimit], threads: Threads) -> None:
    """Check that all threads can be started: gRPC and OpenMP crash or hang if they cannot start one."""
    for limit in limits:
        if limit.free < threads.total:
            raise failures.PROCESSES_LIMITED.error(
                where=limit.where[0].upper() + limit.where[1:],
                limit=limit.limit,
                used=limit.used,
                num_shard=threads.num_shard,
                need=threads.total,
            )


def check_address_space() -> None:
    """Check the limit on the address space: gRPC hangs or aborts if it gets no memory."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_BYTES:
        raise failures.ADDRESSES_LIMITED.error(limit_bytes=limit, need_bytes=MIN_ADDRESS_BYTES)


def wait_for_port(host: str, port: int, flag: str) -> None:
    """Listen briefly, as the server will; retry while a server that is or may be stopping holds the port.

    Clients that restart a server (caikit-tgis-backend does) do not wait for the old one to end. With the original, they
    did not have to, as the new one took so long to load.

    Raises:
        UsageError: see :func:`listen`; or a running server of this user has the port.
    """
    deadline = time.monotonic() + PREDECESSOR_S
    is_logged = False
    num_unknown = 0  # the holder has just ended, or belongs to another user
    while True:
        try:
            listen(host, port, flag).close()
        except UsageError:
            own = find_own_server(port)
            is_server = True if own else is_held_by_server(port)
            num_unknown = num_unknown + 1 if is_server is None else 0
            is_over = num_unknown == MAX_UNKNOWN or time.monotonic() > deadline
            if own and (is_over or is_staying(own)):
                raise explain_own_server(own, port, flag) from None
            if is_server is False or is_over:
                raise
        else:
            return
        if not is_logged and is_server:
            is_logged = True
            owner = f"your server of {own.model} (pid {own.pid}), which is" if own else "a server that may be"
            logger.warning("Port %d is used by %s stopping: waiting for it", port, owner)
        time.sleep(0.1)


def find_own_server(port: int) -> RunningServer | None:
    """This user's running server that has the port."""
    return find_at_port(port, find_listener(port)[1])


def is_staying(server: RunningServer) -> bool:
    """Whether a server starts or serves, so that it will keep its ports."""
    return ask(server).state in (State.STARTING, State.READY)


def explain_own_server(server: RunningServer, port: int, flag: str) -> TgisError:
    name = server.grpc_port or server.pid  # `tgis stop` knows no HTTP ports
    return failures.PORT_OF_OWN_SERVER.error(port=port, model=server.model, pid=server.pid, name=name, flag=flag)


def is_held_by_server(port: int) -> bool | None:
    """Whether a front-end, serving or shutting down, listens on the port; ``None`` if no listener was found."""
    _, _, command = find_listener(port)
    return "tgis_server.child" in command if command else None


def check_readable(flag: str, file: Path | None) -> None:
    if file is None:
        return
    try:
        open_regular(file).close()
    except OSError as error:
        raise failures.FILE_UNREADABLE.error(flag=flag, file=file, reason=error.strerror) from error


def check_sockets(run: Run) -> None:
    """Check that paths fit into a socket address, and that no running server uses one of them."""
    longest = max(run.sockets, key=lambda path: len(os.fsencode(path)))
    excess = len(os.fsencode(longest)) - MAX_SOCKET_PATH_BYTES
    if excess > 0:
        raise failures.SOCKET_PATH_TOO_LONG.error(path=longest, excess=excess)
    for path in run.sockets:
        check_socket(path)


def check_socket(path: Path) -> None:
    """Check that the socket can be created without replacing anything that must stay."""
    if not os.access(path.parent, os.W_OK):
        raise failures.SOCKET_DIR_NOT_WRITABLE.error(directory=path.parent)
    check_replaceable(path)


def check_replaceable(path: Path) -> None:
    """Check that whatever exists at the path is a socket of this user that nothing listens on."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "not a socket")
        raise failures.SOCKET_PATH_TAKEN.error(path=path, kind=kind)
    if is_served(path):
        raise failures.SOCKET_IN_USE.error(path=path)
    if status.st_uid != os.getuid() != 0:  # this user may not connect, so it may be in use
        raise failures.SOCKET_PATH_TAKEN.error(path=path, kind=f"a socket of user {status.st_uid}")


def is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def check_memory(run: Run, machine: Machine, sizes: ModelSizes) -> None:
    """Refuse only what cannot work: weights larger than the memory, and a KV cache that is too large or too small."""
    for rank in range(run.num_shard):
        sizes.rank_memory(run, rank).check_kv_cache_memory()
    weights = [sizes.weight_bytes(rank, run.num_shard, run.dtype) for rank in range(run.num_shard)]
    if run.device == "cpu":
        if machine.free_bytes and sum(weights) > machine.free_bytes:
            raise failures.WEIGHTS_EXCEED_MEMORY.error(
                model=run.model_id,
                dtype=run.dtype,
                weights_bytes=sum(weights),
                free_bytes=machine.free_bytes,
                limit=describe_limit(machine),
            )
        if machine.free_bytes:
            check_kv_cache(run, (machine.free_bytes - sum(weights)) // run.num_shard)
        return
    for gpu, weight_bytes in zip(machine.gpus, weights, strict=False):
        usable = gpu.total_bytes * run.config.cuda_process_memory_fraction
        if gpu.total_bytes and weight_bytes > usable:
            raise failures.WEIGHTS_EXCEED_GPU.error(
                model=run.model_id,
                num_shard=run.num_shard,
                weights_bytes=weight_bytes,
                gpu=str(gpu),
                usable_bytes=int(usable),
            )
        if gpu.total_bytes:
            check_kv_cache(run, int(usable) - weight_bytes)


def check_kv_cache(run: Run, free_bytes: int) -> None:
    """
    Args:
        free_bytes: that the weights leave free for a shard, at most.
    """
    asked = run.config.kv_cache_memory
    if asked is not None and asked > free_bytes:
        raise failures.KV_CACHE_TOO_LARGE.error(asked_bytes=asked, free_bytes=free_bytes)


def describe_limit(machine: Machine) -> str:
    return (
        f"the container's limit is {format_bytes(machine.limit_bytes)}" if machine.limit_bytes else "there is no limit"
    )
