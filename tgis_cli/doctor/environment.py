"""Variables: those that a start refuses, that only look like options, that slow down, or that hide libraries."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tgis_cli.decide.legacy_settings import BY_NAME, warn_of_settings
from tgis_cli.doctor.verdict import Context, Verdict, fail, ok, warn
from tgis_cli.model_files.cache.location import CACHE_VARIABLE, DEPRECATED_VARIABLES
from tgis_cli.supervisor.environment import ALLOCATOR, SECRETS
from tgis_server.host.proxies import PROXIES, find_proxy, host_of
from tgis_server.options import FALSE_WORDS, options
from tgis_server.words.url_credentials import mask_credentials, split_credentials

LIKENESS = 0.84  # of MAX_SEQ_LENGTH and MAX_SEQUENCE_LENGTH
MIN_LENGTH = 8  # shorter names are like one another by chance
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP|SCTP).*)?$")  # of Kubernetes
OUR_MODULES = ("tgis_cli", "tgis_server", "torch", "grpc", "tokenizers", "safetensors", "numpy", "aiohttp", "google")
CUDA_LIBRARIES = ("libcudart.so*", "libcublas.so*", "libcudnn.so*", "libnccl.so*", "libnvrtc.so*")


GPU_ONLY = ("CUDA_", "NCCL_", "PYTORCH_", "TORCH_")  # variables that mean nothing to a CPU


def is_on(value: str) -> bool:
    return value.strip().lower() not in {"", *FALSE_WORDS}


# Variable -> whether a value is a burden, and what it does.
BURDENS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "CUDA_LAUNCH_BLOCKING": (is_on, "lets the CPU wait for every operation of the GPU"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (is_on, "asks the driver for every piece of GPU memory"),
    "TORCH_USE_CUDA_DSA": (is_on, "checks every access of a kernel"),
    "TORCH_NCCL_BLOCKING_WAIT": (is_on, "lets the CPU wait for every collective"),
    "NCCL_P2P_DISABLE": (is_on, "keeps GPUs from talking to each other directly"),
    "NCCL_SHM_DISABLE": (is_on, "sends through sockets what GPUs exchange"),
    "NCCL_DEBUG": (lambda value: value.upper() in ("INFO", "TRACE"), "fills the log"),
    "PYTHONTRACEMALLOC": (is_on, "records every allocation of Python"),
    "PYTHONDEVMODE": (is_on, "checks every call of Python"),
    "PYTHONPROFILEIMPORTTIME": (is_on, "fills the log"),
    "MALLOC_CHECK_": (is_on, "checks every allocation"),
    "MALLOC_PERTURB_": (is_on, "overwrites all memory that is freed"),
    "GRPC_TRACE": (bool, "fills the log"),
    "OMP_DISPLAY_ENV": (is_on, "fills the log"),
}


def check_options(context: Context) -> Iterator[Verdict]:
    """What a start would refuse, and settings of the original that do not do what they did."""
    yield from map(fail, context.refused)
    yield from map(warn, warn_of_settings(context.loaded, context.environ))
    given = [name for name, origin in context.loaded.origins.items() if origin != "default"]
    yield ok(f"Options that are given: {', '.join(given) or 'none'}.", given=given)


def check_misspelt(context: Context) -> Iterator[Verdict]:
    """Variables that are almost options: nobody reads them."""
    known = {option.env: option for option in options()}
    names = {*known, *BY_NAME, *(option.opt.also_env for option in options())}
    for name in sorted(context.environ):
        if name in names or len(name) < MIN_LENGTH or SERVICE_LINK.search(name):
            continue
        close = difflib.get_close_matches(name, [env for env in known if len(env) >= MIN_LENGTH], n=1, cutoff=LIKENESS)
        if close:
            yield warn(f"The variable {name} is no option.", f"Did you mean {close[0]}?", name=name, close=close[0])
        elif name.startswith("TGIS_"):
            yield warn(f"The variable {name} is no option.", "`tgis config show` lists them.", name=name)


def check_burdens(context: Context) -> Iterator[Verdict]:
    """What somebody set to find an error, and forgot."""
    for name, (is_burden, effect) in BURDENS.items():
        value = context.environ.get(name, "")
        is_heard = context.uses_gpus or not name.startswith(GPU_ONLY)
        if value and is_heard and is_burden(value):
            yield warn(f"{name}={value} {effect}.", "Remove it, unless you are looking for an error.", name=name)
    if context.uses_gpus and (allocator := context.environ.get(ALLOCATOR)):
        yield ok(f"{ALLOCATOR} is {allocator!r}.", value=allocator)


def check_paths(context: Context) -> Iterator[Verdict]:
    """What may be loaded in place of our own modules and of the libraries that come with torch."""
    for directory in split_paths(context.environ, "PYTHONPATH"):
        hidden = [
            name
            for name in OUR_MODULES
            if any((directory / tail).exists() for tail in (f"{name}.py", f"{name}/__init__.py"))
        ]
        if hidden:
            yield warn(
                f"PYTHONPATH has {directory}, where {', '.join(hidden)} is found before the installed one.",
                "Remove it, unless that is wanted.",
                path=str(directory),
            )
    for directory in split_paths(context.environ, "LD_LIBRARY_PATH") if context.uses_gpus else ():
        if found := next((file for name in CUDA_LIBRARIES for file in directory.glob(name)), None):
            yield warn(
                f"LD_LIBRARY_PATH has {directory}, where {found.name} may be loaded in place of torch's own.",
                "Remove that directory; the driver's library is found without it.",
                path=str(directory),
            )
    if preloaded := context.environ.get("LD_PRELOAD"):
        yield ok(f"LD_PRELOAD is {preloaded!r}.", value=preloaded)


def split_paths(environ: Mapping[str, str], name: str) -> list[Path]:
    return [Path(part) for part in environ.get(name, "").split(":") if part]


def check_hub(context: Context) -> Iterator[Verdict]:
    """What downloads go by."""
    environ = context.environ
    names = (CACHE_VARIABLE, *DEPRECATED_VARIABLES, "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT")
    given = [f"{name}={mask_credentials(environ[name])}" for name in names if environ.get(name)]
    tokens = [f"{name} is set (and not shown)" for name in SECRETS if environ.get(name)]
    endpoint = environ.get("HF_ENDPOINT")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        yield warn(
            f"HF_ENDPOINT is {mask_credentials(endpoint)!r}, but must be an address such as https://huggingface.co.",
            "Unset or correct it; downloads fail.",
        )
    if given or tokens:
        yield ok(f"For downloads: {', '.join(given + tokens)}.", variables=given, has_token=bool(tokens))


def check_proxies(context: Context) -> Iterator[Verdict]:
    """Proxies are for the hub. Calls to this machine go past them; what else stays inside must be in NO_PROXY."""
    environ = context.environ
    names = [name for base in (*PROXIES, "all_proxy") for name in (base, base.upper())]
    used = {name: environ[name] for name in names if environ.get(name)}
    if not used:
        return
    shown = ", ".join(f"{name}={mask_credentials(value)}" for name, value in used.items())
    endpoint = split_credentials(context.config.otlp_endpoint or "")[0]
    variable, _ = find_proxy(endpoint, environ)
    if variable:
        host = host_of(endpoint)
        yield warn(
            f"{shown}, and NO_PROXY does not name {host}: spans for --otlp-endpoint go through the proxy.",
            f"Add {host} to NO_PROXY.",
            missing=[host],
        )
    else:
        yield ok(f"{shown}; local calls go past it.")
