"""Checks of variables that are refused, that look like options, that slow the server down, or that shadow libraries."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tgis_cli.clients.address import URL_VARIABLE
from tgis_cli.decide.legacy_settings import BY_NAME, warn_of_settings
from tgis_cli.doctor.verdict import Subject, Verdict, fail, ok, warn
from tgis_cli.model_files.cache.location import CACHE_VARIABLE, DEPRECATED_VARIABLES
from tgis_cli.supervisor.environment import ALLOCATOR, SECRETS
from tgis_server.host.proxies import PROXIES, find_proxy, host_of
from tgis_server.options import FALSE_WORDS, options
from tgis_server.words.url_credentials import mask_credentials, split_credentials

MIN_SIMILARITY = 0.84  # the similarity of MAX_SEQ_LENGTH and MAX_SEQUENCE_LENGTH
MIN_LENGTH = 8  # shorter names are similar by chance
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP|SCTP).*)?$")  # set by Kubernetes
OUR_MODULES = ("tgis_cli", "tgis_server", "torch", "grpc", "tokenizers", "safetensors", "numpy", "aiohttp", "google")
CUDA_LIBRARIES = ("libcudart.so*", "libcublas.so*", "libcudnn.so*", "libnccl.so*", "libnvrtc.so*")
GPU_ONLY = ("CUDA_", "NCCL_", "PYTORCH_", "TORCH_")  # variables without effect on a CPU


def is_on(value: str) -> bool:
    return value.strip().lower() not in {"", *FALSE_WORDS}


# Variable -> whether a value slows the server down or floods its log, and how.
BURDENS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "CUDA_LAUNCH_BLOCKING": (is_on, "makes the CPU wait for every GPU operation"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (is_on, "requests every piece of GPU memory from the driver"),
    "TORCH_USE_CUDA_DSA": (is_on, "checks every memory access of a kernel"),
    "TORCH_NCCL_BLOCKING_WAIT": (is_on, "makes the CPU wait for every collective"),
    "NCCL_P2P_DISABLE": (is_on, "keeps GPUs from exchanging data directly"),
    "NCCL_SHM_DISABLE": (is_on, "makes GPUs exchange data through sockets"),
    "NCCL_DEBUG": (lambda value: value.upper() in ("INFO", "TRACE"), "fills the log"),
    "PYTHONTRACEMALLOC": (is_on, "records every Python allocation"),
    "PYTHONDEVMODE": (is_on, "enables Python's debug checks"),
    "PYTHONPROFILEIMPORTTIME": (is_on, "fills the log"),
    "MALLOC_CHECK_": (is_on, "checks every allocation"),
    "MALLOC_PERTURB_": (is_on, "overwrites all freed memory"),
    "GRPC_TRACE": (bool, "fills the log"),
    "OMP_DISPLAY_ENV": (is_on, "fills the log"),
}


def check_options(subject: Subject) -> Iterator[Verdict]:
    """Options that the launcher would refuse, and the original's settings that have a different effect here."""
    yield from map(fail, subject.refused)
    yield from map(warn, warn_of_settings(subject.loaded, subject.environ))
    given = [name for name, origin in subject.loaded.origins.items() if origin != "default"]
    yield ok(f"Options given: {', '.join(given) or 'none'}.", given=given)


def check_misspelt(subject: Subject) -> Iterator[Verdict]:
    """Variables that look like options but are not read."""
    known = {option.env: option for option in options()}
    names = {*known, *BY_NAME, *(option.opt.also_env for option in options()), URL_VARIABLE}
    for name in sorted(subject.environ):
        if name in names or len(name) < MIN_LENGTH or SERVICE_LINK.search(name):
            continue
        close = difflib.get_close_matches(
            name, [env for env in known if len(env) >= MIN_LENGTH], n=1, cutoff=MIN_SIMILARITY
        )
        if close:
            yield warn(f"The variable {name} is not an option.", f"Did you mean {close[0]}?", name=name, close=close[0])
        elif name.startswith("TGIS_"):
            yield warn(f"The variable {name} is not an option.", "`tgis config show` lists the options.", name=name)


def check_burdens(subject: Subject) -> Iterator[Verdict]:
    """Debugging variables that are still set."""
    for name, (is_burden, effect) in BURDENS.items():
        value = subject.environ.get(name, "")
        has_effect = subject.uses_gpus or not name.startswith(GPU_ONLY)
        if value and has_effect and is_burden(value):
            yield warn(f"{name}={value} {effect}.", "Remove it unless you are debugging.", name=name)
    if subject.uses_gpus and (allocator := subject.environ.get(ALLOCATOR)):
        yield ok(f"{ALLOCATOR} is {allocator!r}.", value=allocator)


def check_paths(subject: Subject) -> Iterator[Verdict]:
    """Modules and libraries that may be loaded instead of ours and torch's."""
    for directory in split_paths(subject.environ, "PYTHONPATH"):
        shadowed = [
            name
            for name in OUR_MODULES
            if any((directory / tail).exists() for tail in (f"{name}.py", f"{name}/__init__.py"))
        ]
        if shadowed:
            yield warn(
                f"PYTHONPATH has {directory}, which shadows the installed {', '.join(shadowed)}.",
                "Remove it unless that is intended.",
                path=str(directory),
            )
    for directory in split_paths(subject.environ, "LD_LIBRARY_PATH") if subject.uses_gpus else ():
        if found := next((file for name in CUDA_LIBRARIES for file in directory.glob(name)), None):
            yield warn(
                f"LD_LIBRARY_PATH has {directory}: its {found.name} may be loaded instead of torch's.",
                "Remove that directory; the driver's library is found without it.",
                path=str(directory),
            )
    if preloaded := subject.environ.get("LD_PRELOAD"):
        yield ok(f"LD_PRELOAD is {preloaded!r}.", value=preloaded)


def split_paths(environ: Mapping[str, str], name: str) -> list[Path]:
    return [Path(part) for part in environ.get(name, "").split(":") if part]


def check_hub(subject: Subject) -> Iterator[Verdict]:
    """Variables that downloads use."""
    environ = subject.environ
    names = (CACHE_VARIABLE, *DEPRECATED_VARIABLES, "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT")
    given = [f"{name}={mask_credentials(environ[name])}" for name in names if environ.get(name)]
    tokens = [f"{name} is set (and not shown)" for name in SECRETS if environ.get(name)]
    endpoint = environ.get("HF_ENDPOINT")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        yield warn(
            f"HF_ENDPOINT is {mask_credentials(endpoint)!r}, but must be a URL such as https://huggingface.co.",
            "Unset or correct it: downloads fail until then.",
        )
    if given or tokens:
        yield ok(f"For downloads: {', '.join(given + tokens)}.", variables=given, has_token=bool(tokens))


def check_proxies(subject: Subject) -> Iterator[Verdict]:
    """Proxies are for the hub. Local calls bypass them; other internal hosts must be in NO_PROXY."""
    environ = subject.environ
    names = [name for base in (*PROXIES, "all_proxy") for name in (base, base.upper())]
    used = {name: environ[name] for name in names if environ.get(name)}
    if not used:
        return
    shown = ", ".join(f"{name}={mask_credentials(value)}" for name, value in used.items())
    endpoint = split_credentials(subject.config.otlp_endpoint or "")[0]
    variable, _ = find_proxy(endpoint, environ)
    if variable:
        host = host_of(endpoint)
        yield warn(
            f"{shown}, and NO_PROXY does not name {host}: spans for --otlp-endpoint go through the proxy.",
            f"Add {host} to NO_PROXY.",
            missing=[host],
        )
    else:
        yield ok(f"{shown}; local calls bypass it.")
