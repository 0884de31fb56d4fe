"""The models in the cache, their revisions, and whether each could be served, judging by names, sizes and headers.

Used by ``tgis models``, and by ``tgis download-weights`` if the hub cannot be reached.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tgis_cli.model_files.cache.disk import INCOMPLETE
from tgis_cli.model_files.cache.folder import CacheFolder
from tgis_cli.model_files.cache.model_dir import list_folders
from tgis_cli.model_files.convert.fast_tokenizer import has_slow_tokenizer
from tgis_cli.model_files.download.selection import (
    SAFETENSORS_ENDING,
    drop_superfluous,
    parse_extensions,
    select_names,
)
from tgis_cli.model_files.tokenizer_check import check_tokenizer
from tgis_cli.model_files.whole_weights import PYTORCH_ENDINGS
from tgis_server import model_files
from tgis_server.engines import catalogue
from tgis_server.errors import ModelError, UsageError
from tgis_server.host.regular_file import read_regular
from tgis_server.model_files import (
    HEAD,
    choose_weights,
    find_tensor,
    find_weights,
    read_header,
    read_json,
    read_tensors,
    read_weight_map,
)

CONFIGURATION = ("config.json", "generation_config.json")
FORMATS = {".safetensors": "safetensors", ".bin": "pytorch", ".pt": "pytorch", ".onnx": "onnx", ".gguf": "gguf"}


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A revision of a model in the cache."""

    model: str
    commit: str
    revisions: tuple[str, ...]  # branches and tags that point to this commit
    path: Path
    num_bytes: int  # of its files, on disk
    format: str  # of the weights; empty: there are none
    architecture: str  # from config.json; empty: not named
    engine: str  # that would serve it; empty: none
    why_no_engine: str
    problems: tuple[str, ...]  # what prevents serving or copying it, as clauses; empty: complete
    last_used: float  # seconds since the epoch; 0: unknown

    @property
    def is_complete(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_complete": self.is_complete}


def list_models(cache_dir: Path) -> list[CachedModel]:
    """All revisions of all models, by name. Unreadable folders are left out.

    Raises:
        UsageError: the cache exists, but cannot be read.
    """
    try:
        folders = list_folders(cache_dir)
    except OSError as error:
        raise UsageError(
            f"The cache {cache_dir} cannot be read ({error.strerror}): give user {os.getuid()} permission, or name "
            "another cache with HF_HUB_CACHE."
        ) from error
    found: list[CachedModel] = []
    for name in folders:
        with suppress(OSError):
            found += list_revisions(CacheFolder(cache_dir, name), name)
    return found


def list_revisions(folder: CacheFolder, model: str) -> Iterator[CachedModel]:
    """The revisions of one model."""
    references = folder.read_references()
    commits = {path.name for path in (folder.root / "snapshots").glob("*") if path.is_dir()} | set(references.values())
    for commit in sorted(commits):
        revisions = tuple(name for name, target in references.items() if target == commit)
        try:
            yield inspect_snapshot(folder, model, commit, revisions)
        except Exception as error:  # noqa: BLE001  one odd model must not hide the others
            yield describe_unreadable(folder, model, commit, revisions, error)
    if not commits:
        yield inspect_snapshot(folder, model, "", ())


def describe_unreadable(
    folder: CacheFolder, model: str, commit: str, revisions: tuple[str, ...], error: Exception
) -> CachedModel:
    """The entry of a revision whose files cannot be inspected."""
    problem = f"its files cannot be inspected ({type(error).__name__}: {error})"
    return CachedModel(model, commit, revisions, folder.snapshot(commit), 0, "", "", "", problem, (problem,), 0.0)


def inspect_snapshot(folder: CacheFolder, model: str, commit: str, revisions: tuple[str, ...]) -> CachedModel:
    path = folder.snapshot(commit) if commit else folder.root
    entries = {entry.name: entry for entry in path.iterdir()} if commit and path.is_dir() else {}
    sizes, last_used = {}, 0.0
    for name, entry in entries.items():
        with suppress(OSError):
            status = entry.stat()
            sizes[name] = status.st_size
            last_used = max(last_used, status.st_atime if name.endswith(tuple(FORMATS)) else 0)
    engine, why_no_engine = find_engine_name(path) if "config.json" in sizes else ("", "there is no config.json")
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
        problems=(
            *find_problems(folder, model, commit, revisions, set(entries), sizes),
            *(find_unprepared(path, model, revisions or (commit,), set(sizes)) if engine else ()),
            *(find_broken_config(path) if sizes else ()),
        ),
        last_used=last_used,
    )


def sum_incomplete(folder: CacheFolder) -> int:
    return sum(path.stat().st_size for path in folder.blobs.glob(f"*{INCOMPLETE}"))


def find_problems(
    folder: CacheFolder, model: str, commit: str, revisions: tuple[str, ...], names: set[str], sizes: dict[str, int]
) -> Iterator[str]:
    """Missing and broken files."""
    revision = "" if not commit or "main" in revisions else f" --revision {next(iter(revisions), commit)}"
    again = f"`tgis download-weights {model}{revision}` completes it"
    if not commit:
        yield f"only a part has been downloaded; {again}"
        return
    if dangling := sorted(names - sizes.keys()):
        yield f"{dangling[0]}{and_more(dangling)} is a dangling link; {again}"
    missing = [name for name in find_missing_names(folder, model, commit, sizes) if name not in dangling]
    if missing:
        is_short = missing[0] in sizes
        yield f"{missing[0]}{and_more(missing)} is {'incomplete' if is_short else 'missing'}; {again}"
    if "config.json" not in sizes and "config.json" not in missing:
        listing = folder.read_listing(model, commit)
        yield f"config.json is missing; {again}" if listing is None else "its repository has no config.json"
    if not missing and not any(name.endswith(tuple(FORMATS)) for name in sizes):
        yield f"there are no weights; {again}"
    has_reported = bool(missing or dangling)
    has_some = any(name.endswith(SAFETENSORS_ENDING) for name in sizes)
    if is_half_converted(folder.snapshot(commit), sizes):
        yield f"its conversion was interrupted; `tgis convert-to-safetensors {model}{revision}` completes it"
        has_reported = True
    for problem in find_weight_problems(folder.snapshot(commit)) if has_some else ():
        if not has_reported:
            yield problem
    if leaving := [name for name in sizes if folder.is_outside(folder.snapshot(commit) / name)]:
        yield (
            f"{leaving[0]}{and_more(leaving)} is stored outside the model's folder, so copies of the folder lack it; "
            f"`tgis download-weights {model}{revision}` moves it there"
        )


def is_half_converted(path: Path, names: Iterable[str]) -> bool:
    """Whether a conversion has made only some of the weights."""
    with suppress(ModelError):
        return choose_weights(
            names, model_files.SAFETENSORS, lambda index: read_weight_map(path / index).values()
        ).is_half_converted
    return False


def find_unprepared(path: Path, model: str, revisions: Sequence[str], names: set[str]) -> Iterator[str]:
    """What must still be converted before startup."""
    revision = "" if "main" in revisions else f" --revision {revisions[0]}"
    if not any(name.endswith(SAFETENSORS_ENDING) for name in names) and any(
        name.endswith(PYTORCH_ENDINGS) for name in names
    ):
        yield f"its weights are in PyTorch's format; `tgis convert-to-safetensors {model}{revision}` converts them"
    if has_slow_tokenizer(path):
        yield f"tokenizer.json is missing; `tgis convert-to-fast-tokenizer {model}{revision}` makes it"
    elif "tokenizer.json" not in names:
        yield "its repository has no tokenizer"
    else:
        yield from find_broken_tokenizer(path)


def find_missing_names(folder: CacheFolder, model: str, commit: str, sizes: dict[str, int]) -> Iterator[str]:
    """Files that a download would have taken, or that the index of the weights names, but that are missing or short."""
    listing = folder.read_listing(model, commit)
    snapshot = folder.snapshot(commit)
    expected = {file.name: file.size for file in listing.files} if listing is not None else sizes
    try:
        wanted = select_names(
            expected,
            parse_extensions(SAFETENSORS_ENDING),
            lambda name: read_regular(snapshot / name).decode(),
            with_pytorch=True,
        )
    except ModelError:  # the index is broken, or names files outside the listing
        wanted = []
    except OSError as error:
        yield Path(error.filename).name
        return
    for name in drop_superfluous(wanted, expected, snapshot):
        if sizes.get(name) != expected[name]:
            yield name


def find_broken_config(model_dir: Path) -> Iterator[str]:
    """Problems of the configuration, whether or not an engine supports the model."""
    for name in CONFIGURATION:
        try:
            if (model_dir / name).exists():
                read_json(model_dir / name)
        except ModelError as error:
            yield str(error).rstrip(".")


def find_broken_tokenizer(model_dir: Path) -> Iterator[str]:
    """Problems of the tokenizer that a quick check finds."""
    try:
        check_tokenizer(model_dir)
    except ModelError as error:
        yield str(error).rstrip(".")


def find_weight_problems(model_dir: Path) -> Iterator[str]:
    """What would prevent reading the safetensors at startup: bad headers and ambiguous tensors."""
    try:
        names = find_weights(model_dir).names
    except ModelError as error:
        yield str(error).rstrip(".")
        return
    files = [model_dir / name for name in names]
    if problems := list(filter(None, map(find_damage, files))):
        yield from problems
        return
    try:
        with access_times_kept(files):
            find_ambiguous(model_dir)
    except ModelError as error:
        yield str(error).rstrip(".")


def find_ambiguous(model_dir: Path) -> None:
    """Compare tensors that are stored twice. Without any, only headers are read.

    Raises:
        ModelError: two copies of a tensor that is needed differ.
    """
    found = read_tensors(model_dir, lambda warning: None)
    names = [HEAD]
    with suppress(ModelError):  # no engine supports the model
        _, summary = catalogue.find_engine(model_dir)
        names += summary.tensors
    for name in names:
        find_tensor(found, name)


@contextmanager
def access_times_kept(files: Iterable[Path]) -> Iterator[None]:
    """Restore access times afterwards: an inspection does not count as use. Does nothing on read-only volumes."""
    times = {file: (status.st_atime_ns, status.st_mtime_ns) for file in files for status in [file.stat()]}
    try:
        yield
    finally:
        for file, kept in times.items():
            with suppress(OSError):
                os.utime(file, ns=kept)


def find_damage(file: Path) -> str:
    """Why a weight file does not match its header; empty if it does."""
    try:
        with access_times_kept([file]):
            read_header(file)
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})"
    except ModelError as error:
        return str(error).rstrip(".")
    return ""


def find_engine_name(path: Path) -> tuple[str, str]:
    """The engine that would serve a model, or why there is none."""
    try:
        engine, _ = catalogue.find_engine(path)
    except ModelError as error:
        return "", str(error)
    return engine.name, ""


def read_architecture(path: Path) -> str:
    with suppress(ModelError, TypeError):
        config = read_json(path / "config.json")
        return ", ".join(map(str, config.get("architectures") or ())) or str(config.get("model_type") or "")
    return ""


def and_more(names: Sequence[object]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
