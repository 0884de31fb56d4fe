"""What is in the cache: models, their revisions, and whether each could be served. Reads names, sizes and headers only.

Used by ``tgis models``, and by ``tgis download-weights`` where the hub cannot be asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tgis_cli.models.cache_folder import CacheFolder
from tgis_cli.models.selection import parse_extensions, select_names
from tgis_server.errors import ModelError

PREFIX = "models--"
FORMATS = {".safetensors": "safetensors", ".bin": "pytorch", ".pt": "pytorch", ".onnx": "onnx", ".gguf": "gguf"}


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A revision of a model in the cache."""

    model: str
    commit: str
    revisions: tuple[str, ...]  # branches and tags that mean this commit
    path: Path
    num_bytes: int  # of its files, on disk
    format: str  # of the weights; empty = there are none
    architecture: str  # as config.json names it; empty = it does not
    engine: str  # that would serve it; empty = none
    why_no_engine: str
    problems: tuple[str, ...]  # sentences: what keeps it from being served or copied; none = complete
    last_used: float  # seconds since the epoch; 0 = not known

    @property
    def is_complete(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_complete": self.is_complete}


def list_models(cache_dir: Path) -> list[CachedModel]:
    """All revisions of all models, by name. A folder that cannot be read is left out."""
    found: list[CachedModel] = []
    with suppress(OSError):
        for root in sorted(cache_dir.glob(f"{PREFIX}*")):
            name = root.name.removeprefix(PREFIX).replace("--", "/")
            with suppress(OSError):
                found += list_revisions(CacheFolder(cache_dir, name), name)
    return found


def list_revisions(folder: CacheFolder, model: str) -> Iterator[CachedModel]:
    """The revisions of one model."""
    references = read_references(folder.root)
    commits = {path.name for path in (folder.root / "snapshots").glob("*") if path.is_dir()} | set(references.values())
    for commit in sorted(commits):
        revisions = tuple(name for name, target in references.items() if target == commit)
        yield inspect_snapshot(folder, model, commit, revisions)
    if not commits:
        yield inspect_snapshot(folder, model, "", ())


def read_references(root: Path) -> dict[str, str]:
    """Commit by name of branch or tag."""
    refs = root / "refs"
    return {str(file.relative_to(refs)): file.read_text().strip() for file in sorted(refs.rglob("*")) if file.is_file()}


def inspect_snapshot(folder: CacheFolder, model: str, commit: str, revisions: tuple[str, ...]) -> CachedModel:
    """Facts about one revision."""
    path = folder.snapshot(commit) if commit else folder.root
    entries = {entry.name: entry for entry in path.iterdir()} if commit and path.is_dir() else {}
    sizes, last_used = {}, 0.0
    for name, entry in entries.items():
        with suppress(OSError):
            status = entry.stat()
            sizes[name] = status.st_size
            last_used = max(last_used, status.st_atime if name.endswith(tuple(FORMATS)) else 0)
    engine, why_no_engine = find_engine(path) if "config.json" in sizes else ("", "there is no config.json")
    formats = sorted({FORMATS[ending] for ending in FORMATS for name in sizes if name.endswith(ending)})
    return CachedModel(
        model=model,
        commit=commit,
        revisions=revisions,
        path=path,
        num_bytes=sum(sizes.values()) if commit else sum_incomplete(folder),
        format="safetensors" if "safetensors" in formats else ", ".join(formats),
        architecture=read_architecture(path),
        engine=engine,
        why_no_engine=why_no_engine,
        problems=tuple(find_problems(folder, model, commit, set(entries), sizes)),
        last_used=last_used,
    )


def sum_incomplete(folder: CacheFolder) -> int:
    return sum(path.stat().st_size for path in folder.blobs.glob("*.incomplete"))


def find_problems(
    folder: CacheFolder, model: str, commit: str, names: set[str], sizes: dict[str, int]
) -> Iterator[str]:
    """What is missing or broken."""
    again = f"`tgis download-weights {model}` completes it"
    if not commit:
        yield f"only a part has been downloaded; {again}"
        return
    if dangling := sorted(names - sizes.keys()):
        yield f"{dangling[0]}{and_more(dangling)} is a link to nothing; {again}"
    missing = list(find_missing_names(folder, model, commit, sizes))
    if missing:
        yield f"{missing[0]}{and_more(missing)} is missing; {again}"
    if "config.json" not in sizes and "config.json" not in missing:
        yield f"config.json is missing; {again}"
    for name in sorted(sizes):
        if name.endswith(".safetensors") and (problem := find_damage(folder.snapshot(commit) / name)):
            yield problem
    if not missing and not any(name.endswith(tuple(FORMATS)) for name in sizes):
        yield f"there are no weights; {again}"
    if leaving := [name for name in sizes if folder.leads_out(folder.snapshot(commit) / name)]:
        yield (
            f"{leaving[0]}{and_more(leaving)} lies outside the model's folder, where copies of it lead to nothing; "
            f"`tgis download-weights {model}` brings it in"
        )


def find_missing_names(folder: CacheFolder, model: str, commit: str, sizes: dict[str, int]) -> Iterator[str]:
    """Files that a download would have taken, or that the index of the weights names."""
    listing = folder.read_listing(model, commit)
    snapshot = folder.snapshot(commit)
    if listing is not None:
        expected = {file.name: file.size for file in listing.files}
    else:
        expected = {name: sizes[name] for name in sizes}
    has_weights = any(name.endswith(".safetensors") for name in expected)
    with suppress(ModelError, OSError):  # an index that is not there or broken is found out by other means
        wanted = select_names(
            expected, parse_extensions(".safetensors"), lambda name: (snapshot / name).read_text(), with_bin=True
        )
        is_converted = "model.safetensors" in sizes or "model.safetensors.index.json" in sizes
        for name in wanted:
            if is_converted and not has_weights and name.endswith((".bin", ".pt")):
                continue  # converted, and removed since
            if sizes.get(name) != expected[name]:
                yield name
    for index in ("model.safetensors.index.json",) if listing is None else ():
        with suppress(OSError, ValueError, KeyError, AttributeError):
            yield from sorted(set(json.loads((snapshot / index).read_bytes())["weight_map"].values()) - sizes.keys())


def find_damage(file: Path) -> str:
    """What the header of a file of weights contradicts; empty if nothing."""
    from tgis_server.engines.native.checkpoint import read_header

    try:
        read_header(file)
    except ModelError as error:
        return str(error).rstrip(".")
    return ""


def find_engine(path: Path) -> tuple[str, str]:
    """The engine that would serve it, or why there is none."""
    from tgis_server.engines.native.families import read_spec

    try:
        read_spec(path)
    except ModelError as error:
        return "", str(error)
    return "native", ""


def read_architecture(path: Path) -> str:
    with suppress(OSError, ValueError, AttributeError):
        config = json.loads((path / "config.json").read_bytes())
        return ", ".join(map(str, config.get("architectures") or ())) or str(config.get("model_type") or "")
    return ""


def and_more(names: Sequence[object]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
