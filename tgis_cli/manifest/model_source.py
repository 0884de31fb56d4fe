"""Where the pods get the model: ``--model-source``, and what it means for the launcher's arguments and volumes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tgis_cli.manifest.names import check_resource
from tgis_cli.manifest.wanted import Wanted
from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_cli.model_files.cache.names import is_safe_path
from tgis_cli.plan.source import ModelSource
from tgis_server.errors import UsageError
from tgis_server.options import ServeConfig
from tgis_server.words.close_words import did_you_mean

KINDS = ("pvc", "hub", "bundle", "image")
FORMS = "pvc:CLAIM[/PATH], hub[:CLAIM], bundle:CLAIM/FILE or image"
MODELS = "/models"  # in a container, the cache or the parent of the models' directories
BUNDLES = "/bundle"
KSERVE_MODEL = "/mnt/models"  # where KServe puts the model


@dataclass(frozen=True, slots=True)
class Source:
    """``--model-source``, parsed."""

    kind: str
    claim: str = ""
    path: str = ""  # in the claim

    def __str__(self) -> str:
        rest = f"{self.claim}/{self.path}" if self.path else self.claim
        return f"{self.kind}:{rest}" if rest else self.kind


@dataclass(frozen=True, slots=True)
class Placement:
    """The model as the pods find it."""

    source: Source
    model: str  # the launcher's argument; empty for the demo model
    cache: str  # where the pods look up the model, a hub id; empty if it is a directory
    revision: str | None  # in the cache

    @property
    def has_own_copy(self) -> bool:
        """Whether each pod downloads into a volume of its own."""
        return self.source.kind == "hub" and not self.source.claim


def parse_source(text: str) -> Source:
    """
    Raises:
        UsageError: the text has none of the forms.
    """
    kind, colon, rest = text.partition(":")
    claim, slash, path = rest.partition("/")
    if kind not in KINDS:
        raise refuse(text, did_you_mean(kind, KINDS))
    needs_claim, takes_path = kind in ("pvc", "bundle"), kind in ("pvc", "bundle")
    if (needs_claim and not claim) or (colon and not claim) or (kind == "image" and colon):
        raise refuse(text)
    if (slash and not takes_path) or (kind == "bundle" and not path) or (path and not is_safe_path(path.rstrip("/"))):
        raise refuse(text)
    if claim:
        check_resource(f"The claim in --model-source {text}", claim)
    return Source(kind, claim, path.rstrip("/"))


def refuse(text: str, hint: str = "") -> UsageError:
    return UsageError(f"--model-source is {text!r}, but must be {FORMS}. {hint}".rstrip())


def place_model(found: ModelSource, config: ServeConfig, wanted: Wanted) -> Placement:
    """Decide where the pods of the target find the model. A rehearsal needs none, unless a source is named.

    Args:
        found: the model on this machine or on the hub.

    Raises:
        UsageError: the source contradicts the model, or other options.
    """
    if config.rehearse and wanted.model_source is None:
        return Placement(Source("image"), "", cache="", revision=None)
    is_demo, revision = found.model_dir == DEMO_MODEL_DIR, config.revision
    is_directory = not is_demo and is_own_directory(found)
    source = parse_source(wanted.model_source) if wanted.model_source else default_source(found, is_demo, is_directory)
    check_source(source, found, wanted, is_demo=is_demo, is_directory=is_directory)
    if is_demo:
        return Placement(source, "", cache="", revision=None)
    last = Path(found.model).expanduser().resolve().name if is_directory else found.model.rpartition("/")[2]
    if source.kind == "pvc" and not source.path and is_directory:
        source = replace(source, path=last)
    if wanted.is_kserve and source.kind != "image":
        return Placement(source, KSERVE_MODEL, cache="", revision=revision if source.kind == "hub" else None)
    match source.kind:
        case "pvc" if is_directory:
            return Placement(source, f"{MODELS}/{source.path}", cache="", revision=None)
        case "pvc":
            return Placement(source, found.model, cache=f"{MODELS}/{source.path}".rstrip("/"), revision=revision)
        case "bundle" if (
            is_directory
        ):  # in the cache, so that a second run of the init container replaces what the first left
            return Placement(source, f"local/{last}", cache=MODELS, revision=None)
        case "image":
            return Placement(source, f"{MODELS}/{last}", cache="", revision=None)
        case _:
            return Placement(source, found.model, cache=MODELS, revision=revision)


def is_own_directory(found: ModelSource) -> bool:
    """Whether the model was given as a directory, and not by its name on the hub."""
    return (found.target_dir or found.model_dir).resolve() == Path(found.model).expanduser().resolve()


def default_source(found: ModelSource, is_demo: bool, is_directory: bool) -> Source:
    if is_demo:
        return Source("image")
    if is_directory:
        raise UsageError(
            f"{found.model} is a directory of this machine: say where the cluster has the model, with --model-source "
            "pvc:CLAIM[/PATH], bundle:CLAIM/FILE or image."
        )
    return Source("hub")


def check_source(source: Source, found: ModelSource, wanted: Wanted, *, is_demo: bool, is_directory: bool) -> None:
    """
    Raises:
        UsageError: the source contradicts the model, or other options.
    """
    if is_demo and source.kind != "image":
        raise UsageError(
            f"--model-source {source} and the demo model contradict each other: every image has that model."
        )
    if is_directory and source.kind == "hub":
        raise UsageError(
            f"--model-source {source} downloads from the hub, but {found.model} is a directory of this machine: give "
            "the model's name on the hub, or another source."
        )
    if wanted.hf_token_secret is not None and source.kind != "hub":
        raise UsageError(
            f"--hf-token-secret {wanted.hf_token_secret} and --model-source {source} contradict each other: only "
            "--model-source hub downloads."
        )
    if wanted.is_kserve and source.kind == "bundle":
        raise UsageError(
            f"--for kserve and --model-source {source} contradict each other: KServe cannot unpack bundles; use a "
            "claim with the unpacked model, pvc:CLAIM/PATH."
        )
    if wanted.is_kserve and source.kind == "hub" and source.claim:
        raise UsageError(
            f"--for kserve and --model-source {source} contradict each other: KServe downloads into a volume of its "
            "own; use hub, or pvc:CLAIM/PATH for a claim that has the model."
        )
    if wanted.is_kserve and source.kind == "pvc" and not source.path and not is_directory:
        raise UsageError(f"--for kserve needs the model's directory in the claim: --model-source {source}/PATH.")
