"""Several names for one tensor, such as a tied head: safetensors store each tensor once.

Names of one tensor are distinguished from views that only share a storage, such as slices of a fused tensor. The name
that stays is chosen as by the original's converter: names that the model's class ties or ignores are dropped first;
after that, the alphabet decides. But a name that an engine reads is never dropped: if it reads several, each gets a
copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgis_cli.model_files.convert.torch_file import StoredTensor
from tgis_server.engines.catalogue import find_engine
from tgis_server.errors import ModelError, TgisError
from tgis_server.model_files import read_json, spellings

TIES = ("_tied_weights_keys", "_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected")


@dataclass(frozen=True, slots=True)
class Preference:
    """Which of several names stay."""

    needed: frozenset[str]  # names that an engine reads; empty if no engine supports the model
    ties: tuple[Callable[[str], Any], ...]  # match names that the model's class ties or ignores

    @classmethod
    def of(cls, model_dir: Path) -> Preference:
        return cls(frozenset(find_needed(model_dir)), tuple(find_ties(model_dir)))

    def rank(self, name: str) -> tuple[Any, ...]:
        """Sort key: the lowest name stays."""
        return bool(self.needed) and name not in self.needed, any(matches(name) for matches in self.ties), name


def drop_aliases(
    path: Path, tensors: Mapping[str, StoredTensor], find_preference: Callable[[], Preference]
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors that stay, and the name that stands for each dropped one.

    A view that shares memory without being the same tensor becomes a separate tensor.

    Args:
        find_preference: called only if tensors share memory.

    Raises:
        ModelError: tensors overlap, and none of them covers the others.
    """
    kept, removed = dict(tensors), dict[str, str]()
    preference: Preference | None = None
    for names in find_clusters(tensors):
        members = [tensors[name] for name in names]
        whole = min(member.start for member in members), max(member.end for member in members)
        if not any((member.start, member.end) == whole and member.is_dense for member in members):
            listed = ", ".join(sorted(names))
            raise ModelError(
                f"{listed} in {path} share memory, and none of them covers the others: save them separately."
            )
        preference = preference or find_preference()
        for name in names:
            first = min((other for other in names if tensors[other] == tensors[name]), key=preference.rank)
            if name != first and name not in preference.needed:
                removed[name] = first
                kept.pop(name)
    return kept, removed


def find_clusters(tensors: Mapping[str, StoredTensor]) -> list[list[str]]:
    """Groups of names whose tensors overlap."""
    clusters: list[list[str]] = []
    end = 0
    by_place = sorted((name for name in tensors if tensors[name].num_bytes), key=lambda name: tensors[name].start)
    for name in by_place:
        if clusters and tensors[name].start < end:
            clusters[-1].append(name)
        else:
            clusters.append([name])
        end = max(end, tensors[name].end)
    return [cluster for cluster in clusters if len(cluster) > 1]


def find_needed(model_dir: Path) -> set[str]:
    with suppress(TgisError):
        _, summary = find_engine(model_dir)
        return {spelling for name in summary.tensors for spelling in spellings(name)}
    return set()


def find_ties(model_dir: Path) -> list[Callable[[str], Any]]:
    """Matchers from the model's class in transformers; empty without one."""
    try:
        import transformers

        config = read_json(model_dir / "config.json")
        cls = getattr(transformers, config["architectures"][0])
        patterns = [pattern for attribute in TIES for pattern in getattr(cls, attribute, None) or ()]
        return [re.compile(pattern).search for pattern in patterns]
    except Exception:  # noqa: BLE001  foreign code, and only a preference is at stake
        return []
