"""Exports a model to ONNX with an exporter that needs older libraries than ours.

::

    DIR (pip install --target)       our environment
    transformers 4, optimum, ...  +  torch, numpy, ...    ─►  a process that finds DIR first: onnx_worker.py

So the exporter has its own transformers, but torch (gigabytes on a machine with GPUs) is not installed twice. The
result is made next to TARGET, compared with the model, and renamed last.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tgis_cli.model_files.cache.disk import FULL, INCOMPLETE, check_disk, write_errors_explained
from tgis_cli.model_files.cache.location import expand
from tgis_cli.model_files.cache.locks import lock
from tgis_cli.model_files.convert.onnx_worker import RESULT
from tgis_cli.terminal.progress import tell
from tgis_server.child import PR_SET_PDEATHSIG
from tgis_server.errors import ModelError, NotEnoughDevices, UsageError
from tgis_server.host.interpreter import make_command, make_environment

# What the exporter needs besides our dependencies. The packages are installed without their dependencies, as torch is
# one of those. optimum-onnx requires transformers < 4.58.
PACKAGES = (
    "accelerate==1.15.0",
    "certifi==2026.10.19.post1",
    "charset-normalizer==3.5.3",
    "flatbuffers==25.12.19",
    "huggingface-hub==0.36.2",
    "idna==3.20",
    "ml-dtypes==0.6.0",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "optimum==2.1.0",
    "optimum-onnx==0.1.0",
    "packaging==26.4",
    "regex==2026.11.19",
    "requests==2.34.2",
    "tokenizers==0.22.2",
    "tqdm==4.70.1",
    "transformers==4.57.6",
    "urllib3==2.8.0",
)
ENVIRONMENT_BYTES = 400 << 20
STAMP = "tgis-exporter.json"
PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider")
OPTION_FIELDS = {"--merge-graphs": "merge_graphs", "--optimize": "optimize"}
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class Export:
    """An export and its options."""

    model_dir: Path
    target: Path
    merge_graphs: bool  # merge an encoder-decoder's decoders with and without cache into one file
    optimize: bool
    provider: str | None  # to optimize the graph for; None: this machine's

    def check(self) -> None:
        """
        Raises:
            UsageError: the target is taken, or the provider is unknown.
        """
        if self.provider not in (None, *PROVIDERS):
            raise UsageError(f"--provider {self.provider} is unknown; choose one of {', '.join(PROVIDERS)}.")
        if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            raise UsageError(f"{self.target} exists and is not empty: remove it, or name another directory.")


def find_environment(environ: Mapping[str, str]) -> Path:
    """The default directory of the exporter.

    Raises:
        UsageError: this user has no home.
    """
    cache = expand(environ.get("XDG_CACHE_HOME", ""), environ)
    if not os.path.isabs(cache):  # as XDG requires; otherwise packages would be loaded from the current directory
        cache = expand("~/.cache", environ)
    if cache.startswith("~"):
        raise UsageError(
            f"There is no place for the exporter: HOME is not set, and user {os.getuid()} has no home directory. Name "
            "one with --environment."
        )
    return Path(cache, "tgis", "onnx-exporter")


def export_to_onnx(export: Export, environment: Path) -> float:
    """Export a model.

    Returns:
        The largest difference between the logits of the two models.

    Raises:
        UsageError: a directory cannot be written or is taken.
        ModelError: the exporter cannot be installed or does not support the model, or its result differs.
        NotEnoughDevices: memory or disk space is insufficient.
    """
    export.check()
    parent = export.target.parent
    with write_errors_explained(environment, "name another directory with --environment"):
        prepare_environment(environment)
    with write_errors_explained(parent, "name another target"):
        parent.mkdir(parents=True, exist_ok=True)
        with lock(parent, lambda: tell(f"another export is writing to {parent}: waiting for it", as_json=False)):
            export.check()  # again: the other export may have had the same target
            weights = sum(path.stat().st_size for path in export.model_dir.iterdir() if path.suffix in WEIGHTS)
            # ONNX files are float32, twice the size of most models; an optimized graph is another copy.
            check_disk(parent, weights * (4 if export.optimize else 2), "The export", "name another target")
            temporary = parent / f".{export.target.name}{INCOMPLETE}"
            shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
            try:
                (temporary / "tmp").mkdir(parents=True)
                if has_transformers():  # newer than the exporter's, so the better reference
                    run_worker(export, temporary, None)
                difference = run_worker(export, temporary, environment)
                copy_small_files(export.model_dir, temporary / RESULT)
                os.rename(temporary / RESULT, export.target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return difference


def prepare_environment(environment: Path) -> None:
    """Install the exporter, unless it is installed.

    Raises:
        ModelError, UsageError, NotEnoughDevices, OSError: see :func:`export_to_onnx`.
    """
    stamp = json.dumps({"packages": PACKAGES, "python": sys.version_info[:2]})
    environment.parent.mkdir(parents=True, exist_ok=True)

    def tell_waiting() -> None:
        tell(f"another process is working in {environment.parent}: waiting for it", as_json=False)

    with lock(environment.parent, tell_waiting):
        found = read_text(environment / STAMP)
        if found == stamp:
            return
        if not found and environment.exists() and (not environment.is_dir() or any(environment.iterdir())):
            raise UsageError(
                f"{environment} is in use for something other than the exporter: name another directory with "
                "--environment."
            )
        check_disk(environment.parent, ENVIRONMENT_BYTES, "The exporter", "name another place with --environment")
        tell(f"installing the exporter in {environment} (only once)", as_json=False)
        temporary = environment.with_name(f".{environment.name}{INCOMPLETE}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            install(temporary, environment)
            (temporary / STAMP).write_text(stamp)
            shutil.rmtree(environment, ignore_errors=True)  # left by a different version
            os.rename(temporary, environment)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def has_transformers() -> bool:
    return importlib.util.find_spec("transformers") is not None


def read_text(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return ""


def install(directory: Path, environment: Path) -> None:
    settings_from: Path | None = None
    if importlib.util.find_spec("pip"):
        command = [*make_command("-m", "pip", "install"), "--quiet", "--disable-pip-version-check", "--no-input"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
        settings_from = environment.parent  # uv reads settings, such as the index, from the current directory
    else:
        raise UsageError(f"Installing the exporter requires pip, which is missing: run {sys.executable} -m ensurepip.")
    command += ["--no-deps", "--only-binary", ":all:", "--target", str(directory), *PACKAGES]
    environ = make_environment(os.environ) | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    with start(command, environ, settings_from) as process:
        output = [line.strip() for line in read_lines(process) if line.strip()]
    if process.returncode:
        errors = [line for line in output if line.lower().startswith("error")] or output or ["without output"]
        raise ModelError(
            f"The exporter cannot be installed ({errors[-1].removeprefix('ERROR: ').rstrip('.')}): check the network, "
            f"set PIP_INDEX_URL to a mirror, or copy {environment} from a machine where this command succeeded."
        )


def run_worker(export: Export, temporary: Path, environment: Path | None) -> float:
    """Run the worker, and return the difference. Without an environment, it only stores the reference logits."""
    order = asdict(export) | {"directory": temporary, "only_reference": environment is None}
    command = make_command("-m", "tgis_cli.model_files.convert.onnx_worker", json.dumps(order, default=str))
    environ = make_environment(os.environ)
    places = [str(environment or ""), environ.get("PYTHONPATH", "")]
    environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(temporary / "tmp"),  # not /tmp, which may be smaller
    }
    outcome: dict[str, Any] = {}
    last_words: deque[str] = deque(maxlen=1)
    with start(command, environ) as process:
        for line in read_lines(process):
            event = parse_event(line)
            outcome |= event
            if "step" in event:
                tell(event["step"], as_json=False)
            elif line.strip():
                last_words.append(line.strip())
    if process.returncode == -signal.SIGKILL:
        raise NotEnoughDevices(
            "The exporter was killed by SIGKILL, probably because memory ran out: it needs about three times "
            "the model's size as float32. Export on a larger machine."
        )
    if outcome.get("errno") in FULL:
        raise OSError(outcome["errno"], outcome["failed"])
    if process.returncode:
        reason = outcome.get("failed") or (last_words[0] if last_words else f"exit code {process.returncode}")
        given = [name for name, value in OPTION_FIELDS.items() if getattr(export, value)]
        advice = f"try without {' and '.join(given)}" if given else "check whether optimum-onnx 0.1 supports the model"
        raise ModelError(f"{export.model_dir} cannot be exported ({reason}): {advice}.")
    return float(outcome.get("difference", 0))


@contextmanager
def start(
    command: Sequence[str], environ: dict[str, str], directory: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process with readable output, killed when the block fails or this process dies."""
    libc = ctypes.CDLL(None)
    with subprocess.Popen(
        command,
        env=environ,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        start_new_session=True,  # Ctrl-C is handled by this process
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            process.wait()
            raise


def read_lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None, "requested at the start"
    return iter(process.stdout)


def parse_event(line: str) -> dict[str, Any]:
    """An event of the worker; empty for other output."""
    with suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict):
            return event
    return {}


def copy_small_files(model_dir: Path, target: Path) -> None:
    """Copy the tokenizer unchanged: the exporter would rewrite it, or omit it if a library is missing."""
    for path in model_dir.iterdir():
        is_wanted = path.name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "spiece"))
        if (is_wanted or path.suffix in (".jinja", ".model", ".tiktoken")) and path.is_file():
            shutil.copyfile(path, target / path.name)
