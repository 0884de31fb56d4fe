"""Containers as manifests, compose files and command lines describe them: the types that readers produce."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tgis_cli.decide.legacy_settings import BY_NAME

EXECUTABLES = ("text-generation-launcher", "text-generation-server")
IMAGE_NAMES = re.compile(r"(?:^|/)(?![^/]*caikit)[^/]*(text-gen|tgis)[^/]*$", re.IGNORECASE)  # caikit is a client
REFERENCE = re.compile(r"\$(\w|\{|\()|\{\{")  # $A, ${A}, $(A), {{.Name}}
# Other software uses these names too, so they do not identify a container as ours.
GENERIC = re.compile(
    "PORT|HF_.*|TRANSFORMERS_CACHE|HUGGINGFACE_HUB_CACHE|.*_VISIBLE_DEVICES|PYTORCH_.*|RANK|WORLD_SIZE|MASTER_.*|"
    "LOG_LEVEL|DEBUG|RUST_BACKTRACE|REVISION|QUANTIZE|OTEL_.*|TLS_.*_PATH|TRUST_REMOTE_CODE|GIT_COMMIT_HASH"
)
OURS = frozenset(name for name in BY_NAME if not GENERIC.fullmatch(name))
OUR_FLAGS = frozenset(BY_NAME[name].flag for name in OURS) - {""}


class LocatedText(str):
    """A text with the line of the file on which it begins (0 = unknown)."""

    __slots__ = ("line",)
    line: int

    def __new__(cls, value: str, line: int = 0) -> LocatedText:
        text = super().__new__(cls, value)
        text.line = line
        return text


def line_of(text: object) -> int:
    return text.line if isinstance(text, LocatedText) else 0


@dataclass(frozen=True, slots=True)
class Given:
    """An environment variable or flag, as written."""

    name: str
    value: str | None  # None: known only in the cluster or the shell
    line: int = 0
    source: str = ""  # where an unknown value comes from


@dataclass(frozen=True, slots=True)
class Probe:
    """A Kubernetes probe."""

    name: str  # "startupProbe", ...
    how: str  # "httpGet", "grpc", "tcpSocket" or "exec"
    target: str  # path, service or command
    port: int | None
    is_https: bool
    period_s: int
    threshold: int
    line: int


@dataclass(slots=True)
class Surroundings:
    """The environment that the server depends on. ``None`` and empty mean unknown."""

    grace_name: str  # what sets the time between SIGTERM and SIGKILL
    grace_s: float | None
    is_kubernetes: bool = False
    is_root_read_only: bool = False
    writable: list[str] = field(default_factory=list)  # directories
    has_shared_memory: bool = False  # more than the default 64 MiB
    ports: list[int] = field(default_factory=list)
    num_gpus: int | None = None
    probes: list[Probe] = field(default_factory=list)
    linked_services: list[str] = field(default_factory=list)  # Kubernetes puts their ports into the environment
    missing: list[str] = field(default_factory=list)  # sources of variables that are not among the files


@dataclass(slots=True)
class Container:
    """One container, or a command or set of variables without a container, for which ``around`` is ``None``."""

    file: str
    title: str
    line: int
    env: list[Given]
    image: str = ""
    argv: list[str] = field(default_factory=list)
    around: Surroundings | None = None

    @property
    def is_partial(self) -> bool:
        """Whether this is a patch or a set of variables, whose other parts may be elsewhere."""
        return not self.image and (not self.argv or self.argv[0].startswith("-"))

    @property
    def is_ours(self) -> bool:
        """Whether this looks like TGIS."""
        return (
            any(name in word for word in self.argv for name in (*EXECUTABLES, "vllm_tgis_adapter"))
            or bool(IMAGE_NAMES.search(self.image))
            or any(given.name in OURS for given in self.env)
            or any(word.partition("=")[0] in OUR_FLAGS for word in self.argv)
        )


def is_reference(value: str) -> bool:
    """Whether a value contains references that only a shell, Kubernetes or a template engine can resolve."""
    return REFERENCE.search(value) is not None


def to_int(value: object) -> int | None:
    """A non-negative number as in manifests; ``None`` for anything else."""
    return int(str(value)) if re.fullmatch("[0-9]{1,9}", str(value)) else None
