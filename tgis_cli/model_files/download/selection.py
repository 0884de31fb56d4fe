"""Which files of a repository a download takes.

The rules for ``--extension``, including its exclusions, are those of the original's ``download-weights``. The weights
that make up the model are chosen by the same code as at startup.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.model_files.cache.listing import Listing, RemoteFile
from tgis_cli.model_files.whole_weights import PYTORCH_ENDINGS, has_whole_safetensors
from tgis_server.errors import ModelError, UsageError
from tgis_server.model_files import (
    BIN,
    PT,
    SAFETENSORS,
    WeightFiles,
    choose_weights,
    find_weights,
    is_of_training,
    parse_weight_map,
)

SAFETENSORS_ENDING = SAFETENSORS.ending
# Configuration, tokenizers with their templates, remote code, the model card.
COMPANIONS = (".json", ".py", ".model", ".md", ".txt", ".tiktoken", ".jinja")

ReadText = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Selection:
    """The files of a commit that a download takes."""

    listing: Listing
    files: tuple[RemoteFile, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def pytorch_bytes(self) -> int:
        """Size of the weights that must be converted to safetensors, which take as much space again."""
        if any(file.name.endswith(SAFETENSORS_ENDING) for file in self.files):
            return 0
        return sum(file.size for file in self.files if file.name.endswith(PYTORCH_ENDINGS))


def parse_extensions(text: str) -> tuple[str, ...]:
    """File name endings from a comma-separated list.

    A single ending that is not a companion brings the companions along; several are taken literally.

    Raises:
        UsageError: the list is empty.
    """
    given = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not given:
        raise UsageError("--extension is empty: name file endings, such as .safetensors or .bin,.json.")
    given = tuple(ending if ending.startswith(".") else f".{ending}" for ending in given)
    is_alone = len(given) == 1 and given[0] not in COMPANIONS
    return (*given, *COMPANIONS) if is_alone else given


def select_names(
    names: Iterable[str], extensions: tuple[str, ...], read_text: ReadText, *, with_pytorch: bool
) -> list[str]:
    """The files to take, sorted by name.

    Args:
        names: paths of all files.
        read_text: returns the text of an index.
        with_pytorch: take PyTorch's format if safetensors are wanted and there are none.

    Raises:
        ModelError: an index is broken, or names missing files.
    """
    present = [name for name in sorted(names) if "/" not in name]
    taken = {name for name in present if name.endswith(extensions) and not is_of_training(name)}
    wanted = [ending for ending in (SAFETENSORS_ENDING, *PYTORCH_ENDINGS) if ending in extensions]
    if with_pytorch and SAFETENSORS_ENDING in wanted and not any(name.endswith(SAFETENSORS_ENDING) for name in taken):
        wanted = [SAFETENSORS_ENDING, *PYTORCH_ENDINGS]
    has_bin = False
    for form in (SAFETENSORS, BIN, PT):
        is_superfluous = form is PT and has_bin and PT.ending not in extensions
        chosen = WeightFiles()
        if form.ending in wanted and not is_superfluous:
            chosen = choose_weights(present, form, lambda index: parse_weight_map(read_text(index), index).values())
            if chosen.is_half_converted and with_pytorch:  # take the PyTorch files of the rest, to convert them
                wanted = [SAFETENSORS_ENDING, *PYTORCH_ENDINGS]
                chosen = WeightFiles(tuple(name for name in chosen.names if name not in chosen.missing))
            if chosen.missing:
                raise ModelError(describe_missing(chosen))
            has_bin |= form is BIN and bool(chosen.names)
        # A repository without a model, such as an adapter's, is taken as it is.
        if chosen.names or form.ending not in wanted or is_superfluous:
            taken = {name for name in taken if not name.endswith(form.ending)} | set(chosen.names)
        if form.index != chosen.index:  # the index of weights that are not taken
            taken.discard(form.index)
        elif chosen.index in present and chosen.index.endswith(extensions):
            taken.add(chosen.index)
    return sorted(taken)


def describe_missing(weights: WeightFiles) -> str:
    """Why a repository's weights are incomplete."""
    source = f"{weights.index} names" if weights.index else "The numbering of its weights requires"
    why = (
        "the repository does not have"
        if "/" not in weights.missing[0]
        else "is in a folder, where weights are not read"
    )
    return f"{source} {weights.missing[0]}, which {why}: try another revision."


def drop_superfluous(names: list[str], published: Collection[str], model_dir: Path) -> list[str]:
    """Drop weights that are not needed because the directory has other whole weights of the same model.

    The others are converted safetensors, or a set with an index where the selection has a single file.

    Args:
        names: the names of the selected files.
        published: names of all files of the repository.
    """
    if not has_whole_safetensors(model_dir):
        return names
    if not any(name.endswith(SAFETENSORS_ENDING) for name in names):
        return [name for name in names if not name.endswith(PYTORCH_ENDINGS) and name != BIN.index]
    here = find_weights(model_dir)
    if not here.index:
        return names
    kept = {name for name in names if not name.endswith(SAFETENSORS_ENDING)}
    return sorted(kept | {here.index, *here.names}) if {here.index, *here.names} <= set(published) else names
