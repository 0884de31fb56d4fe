"""The bug report: one archive with what remote support needs, and no secrets.

Every text goes through :func:`Scrubber.scrub`: credentials turn up in unexpected places.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tgis_cli.doctor.verdict import Subject
from tgis_cli.runs.run_dir import find_leftovers, sort_failed
from tgis_cli.runs.servers import RUN_FILE
from tgis_server.errors import UsageError
from tgis_server.options import options
from tgis_server.words.url_credentials import mask_credentials

# Variables with useful values that are not secret. For all others, only the name is reported.
SHOWN = {
    *(option.env for option in options() if not option.opt.has_credentials),
    *(option.opt.also_env for option in options()),
    *("HF_HUB_CACHE", "TRANSFORMERS_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("HOME", "PATH", "TMPDIR", "LANG", "LC_ALL", "TERM", "NO_COLOR", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "grpc_proxy"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "KUBERNETES_SERVICE_HOST"),
}
SHOWN_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "KMP_", "MKL_", "PYTORCH_", "TORCH_", "MALLOC_")
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH|COOKIE|JWT", re.IGNORECASE)
MIN_SECRET_CHARS = 6  # shorter values occur elsewhere by chance: TOKENIZERS_PARALLELISM=false
SECRET_TEXTS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), "***"),
    (re.compile(r"(\w[\w+.-]*://)[^\s\"']*@"), r"\1***@"),
    (re.compile(r"\bhf_\w{8,}"), "***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 ***"),
)
MACHINE_FILES = (
    "proc/meminfo",
    "proc/self/mounts",
    "proc/self/cgroup",
    "proc/self/limits",
    "proc/version",
    "etc/os-release",
)
GROUP_FILES = ("memory.*", "cpu.*", "cpuset.cpus*", "pids.*")
MAX_FAILED_RUNS = 2
MAX_FILE_BYTES = 256 << 10  # of a longer file, the end is kept
NVIDIA_SMI_S = 10.0


class Scrubber:
    """Removes an environment's secrets, and anything that looks like a secret, from texts."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        found = {value.strip() for name, value in environ.items() if SECRET_NAME.search(name) and not is_shown(name)}
        found |= {json.dumps(text)[1:-1] for text in found}
        self._secrets = sorted((text for text in found if len(text) >= MIN_SECRET_CHARS), key=len, reverse=True)

    def scrub(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        for pattern, replacement in SECRET_TEXTS:
            text = pattern.sub(replacement, text)
        return text


def is_shown(name: str) -> bool:
    return name in SHOWN or (name.startswith(SHOWN_PREFIXES) and not SECRET_NAME.search(name))


def check_target(path: Path) -> None:
    """
    Raises:
        UsageError: the path exists, or its directory is not writable.
    """
    if os.path.lexists(path):
        raise UsageError(f"--bundle {path} already exists: remove it, or choose another name.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "is not writable" if path.parent.is_dir() else "is not a directory"
        raise UsageError(f"--bundle {path} cannot be created: {path.parent} {reason}; choose another place.")


def write_bug_report(path: Path, subject: Subject, report: Mapping[str, Any]) -> list[str]:
    """Write the archive atomically, readable by this user only.

    Returns:
        The names of its files.

    Raises:
        UsageError: the archive cannot be written.
    """
    import tarfile  # the launcher imports this module too, and must be fast

    check_target(path)
    scrubber = Scrubber(subject.environ)
    texts = {"doctor.json": to_json(report), **collect(subject)}
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, text in texts.items():
                    data = scrubber.scrub(text).encode(errors="backslashreplace")
                    entry = tarfile.TarInfo(f"tgis-report/{name}")
                    entry.size, entry.mode = len(data), 0o600
                    archive.addfile(entry, io.BytesIO(data))
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UsageError(f"--bundle {path} cannot be written: {error.strerror}.") from error
    return list(texts)


def collect(subject: Subject) -> dict[str, str]:
    """All texts by file name, with an error in place of a part that fails."""
    texts: dict[str, str] = {}
    for part in (collect_settings, collect_machine, collect_groups, collect_model, collect_runs):
        try:
            texts.update(part(subject))
        except Exception as error:  # noqa: BLE001  an incomplete archive is better than none
            texts[f"{part.__name__}.error"] = f"{type(error).__name__}: {error}\n"
    return texts


def collect_settings(subject: Subject) -> Iterator[tuple[str, str]]:
    yield "config.json", to_json(describe_config(subject))
    yield "environment.json", to_json(describe_environment(subject.environ))
    yield "packages.txt", "".join(f"{name}=={version}\n" for name, version in list_packages())


def collect_machine(subject: Subject) -> Iterator[tuple[str, str]]:
    yield "machine/uname", " ".join(platform.uname()) + "\n"
    for name in MACHINE_FILES:
        if text := subject.host.read(name):
            yield f"machine/{name.replace('/', '-')}", text
    yield "machine/cpuinfo", subject.host.read("proc/cpuinfo").partition("\n\n")[0]
    if text := run_nvidia_smi():
        yield "machine/nvidia-smi", text


def to_json(value: object) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"


def describe_config(subject: Subject) -> dict[str, Any]:
    """The configuration in the form of `tgis config show --json`."""
    inferred = subject.resolved.inferred() if subject.resolved else {}
    return {"options": subject.loaded.as_dict(), "inferred": inferred, "refused": subject.refused}


def describe_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: mask_credentials(environ[name]) if is_shown(name) else "(set)" for name in sorted(environ)}


def list_packages() -> list[tuple[str, str]]:
    found = {(str(package.name), package.version) for package in metadata.distributions()}
    return sorted(found, key=lambda item: item[0].lower())


def collect_groups(subject: Subject) -> Iterator[tuple[str, str]]:
    """Limits and usage of this process's control group and those above it."""
    root = subject.host.root / "sys/fs/cgroup"
    groups = dict.fromkeys(group for name in ("memory", "cpu", "pids") for group in subject.host.group_dirs(name))
    for group in groups:
        lines = [
            f"{file.name}: {text.strip()}"
            for pattern in GROUP_FILES
            for file in sorted(group.glob(pattern))
            if (text := subject.host.read(str(file.relative_to(subject.host.root))))
        ]
        place = "-".join(group.relative_to(root).parts) or "root"
        yield f"machine/cgroup-{place}", "\n".join(lines) + "\n"


def run_nvidia_smi() -> str:
    try:
        process = subprocess.Popen(
            ["nvidia-smi", "-q"],  # noqa: S607  wherever the driver put it
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error)
    try:
        return process.communicate(timeout=NVIDIA_SMI_S)[0]
    except subprocess.TimeoutExpired as error:
        process.kill()  # without waiting for the process: if the driver hangs, it cannot die
        return str(error)


def collect_model(subject: Subject) -> Iterator[tuple[str, str]]:
    """Names and sizes of the model's files, and its config.json."""
    if subject.resolved is None:
        return
    model_dir = subject.resolved.run.model_dir
    sizes = {file.name: file.stat().st_size for file in sorted(model_dir.iterdir()) if file.is_file()}
    yield "model/files.json", to_json(sizes)
    yield "model/config.json", read_end(model_dir / "config.json")


def collect_runs(subject: Subject) -> Iterator[tuple[str, str]]:
    """The configuration and errors of the latest failed runs."""
    parent = subject.config.run_dir or Path(tempfile.gettempdir())
    for run_dir in sort_failed(find_leftovers(parent))[:MAX_FAILED_RUNS]:
        for file in [run_dir / RUN_FILE, *sorted((run_dir / "errors").iterdir())]:
            if file.is_file() and not file.is_symlink():
                yield f"runs/{run_dir.name}/{file.name}", read_end(file)


def read_end(file: Path) -> str:
    """All of a small file, or the end of a large one."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - MAX_FILE_BYTES))
            return opened.read(MAX_FILE_BYTES).decode(errors="backslashreplace")
    except OSError as error:
        return f"cannot be read: {error.strerror}\n"
