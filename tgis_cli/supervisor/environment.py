"""The environment of a child: the launcher's, with a few variables changed."""

from __future__ import annotations

from collections.abc import Mapping

from tgis_server.engines.catalogue import get_engine
from tgis_server.host.interpreter import make_environment
from tgis_server.options import options
from tgis_server.run import Run

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # nothing is downloaded at run time
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


def child_environment(run: Run, rank: int | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a child.

    Args:
        rank: the shard's; ``None`` for the front-end.
        environ: the launcher's environment.
    """
    child = {name: value for name, value in make_environment(environ).items() if name not in SECRETS}
    for option in options():
        if option.opt.has_credentials:  # masked in serve.json; only the front-end needs the credentials
            child.pop(option.env, None)
            if rank is None and (value := getattr(run.config, option.name)):
                child[option.env] = value
    child["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded at run time
    child["PYTHONUNBUFFERED"] = "1"  # the last line before a crash must not be lost
    child["TOKENIZERS_PARALLELISM"] = "false"  # the pool already tokenizes in parallel; nested threads only queue
    child["GLOO_SOCKET_IFNAME"] = "lo"  # all shards are on this machine: host names need not resolve
    if not environ.get(ALLOCATOR, "unset").strip():
        del child[ALLOCATOR]
    else:
        child.setdefault(ALLOCATOR, "expandable_segments:True")
    if rank is None:
        if run.config.log_level != "debug":  # else a raw line of gRPC's core for each TLS handshake that it refuses
            child.setdefault("GRPC_VERBOSITY", "ERROR")
        return child
    if run.shard_threads:
        child["OMP_NUM_THREADS"] = str(run.shard_threads)  # torch's default ignores quotas and other shards
    if run.device == "cuda":
        child["CUDA_VISIBLE_DEVICES"] = run.gpus[rank]  # each shard sees only its own GPU, as device 0
        child.setdefault("NCCL_SOCKET_IFNAME", "=lo")  # by default, NCCL uses an external interface if there is one
    elif run.shard_threads:
        for name, value in get_engine(run.engine).door.cpu_environment(environ).items():
            child.setdefault(name, value)
    return child
