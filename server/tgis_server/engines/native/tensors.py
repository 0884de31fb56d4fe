"""Which tensor of the files each name of the model means. What the files hold decides, not their order. No torch.

Names are taken as transformers takes them: with the prefix of their family, without it (saved from the base model), or
with one too many. A head in the files is used even where config.json calls it tied, unless it is the embedding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tgis_server import failures
from tgis_server.engines.native.families import outer_tensors
from tgis_server.engines.native.families.names import PREFIXES
from tgis_server.engines.native.spec import DecoderSpec
from tgis_server.errors import TgisError

Tell = Callable[[str], None]  # takes a warning

CHUNK_BYTES = 4 << 20  # of a comparison
# Buffers that old checkpoints carry along and everyone computes: frequencies, masks.
COMPUTED = (
    "rotary_emb.inv_freq",
    *(f".{at}.{what}" for at in ("attn", "attention") for what in ("bias", "masked_bias")),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header."""

    file: Path
    name: str  # in the file
    dtype: str  # as the header spells it
    shape: tuple[int, ...]
    start: int  # of its data in the file
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.name} in {self.file.name}"


Find = Callable[[str], TensorInfo | None]  # :func:`find_tensor` in the tensors of one model


def spellings(name: str) -> tuple[str, ...]:
    """The names that a tensor of the model may have in files."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return (name, name.removeprefix(prefix), prefix + name)
    return (name, *(prefix + name for prefix in PREFIXES))


def find_tensor(found: Mapping[str, TensorInfo], name: str) -> TensorInfo | None:
    """The tensor that ``name`` means.

    Raises:
        ModelError: two spellings of it have different contents.
    """
    candidates = [found[spelling] for spelling in spellings(name) if spelling in found]
    for other in candidates[1:]:
        if not have_same_content(candidates[0], other):
            raise ambiguous(name, candidates[0], other)
    return candidates[0] if candidates else None


def join_headers(
    headers: Iterable[Mapping[str, TensorInfo]], weight_map: Mapping[str, str], tell: Tell
) -> dict[str, TensorInfo]:
    """The tensors of all files. Of one that several files hold the index names the copy that counts.

    Args:
        headers: of each file.
        weight_map: of the index, the file of each tensor; empty without an index.
        tell: is told of copies that differ from the one that counts.

    Raises:
        ModelError: copies differ, and no index tells which one counts.
    """
    found: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.items():
            found[name] = choose_copy(found[name], info, weight_map, tell) if name in found else info
    return found


def choose_copy(first: TensorInfo, second: TensorInfo, weight_map: Mapping[str, str], tell: Tell) -> TensorInfo:
    if have_same_content(first, second):
        return first
    named = Path(str(weight_map.get(first.name, ""))).name
    for chosen, other in ((first, second), (second, first)):
        if chosen.file.name == named:
            tell(f"{chosen} is used, as the index says; {other} differs from it.")
            return chosen
    raise ambiguous(first.name, first, second)


def ambiguous(name: str, first: TensorInfo, second: TensorInfo) -> TgisError:
    advice = "remove the file that does not belong to the model"
    if first.file == second.file:
        advice = "save the model again with one of them, or get the file again"
    return failures.TENSOR_AMBIGUOUS.error(tensor=name, first=first, second=second, advice=advice)


def settle_head(spec: DecoderSpec, find: Find, tell: Tell) -> DecoderSpec:
    """The spec, whose head is tied only where the files agree with config.json.

    transformers does the same since its version 5. A tied model of which the files hold the head alone has that one as
    its embedding too.
    """
    embedding, head = map(find, outer_tensors(spec))
    if not spec.is_head_tied or head is None or embedding is None:
        return spec
    if not have_same_content(head, embedding):
        differs = f"differs from {embedding}"
        if head.dtype != embedding.dtype:
            differs = f"is stored as {head.dtype} beside {embedding} as {embedding.dtype}"
        tell(
            f"config.json says tie_word_embeddings, but {head} {differs}: that head is used. Set "
            "tie_word_embeddings to false in config.json to say so."
        )
    elif not is_blank(head):
        return spec
    return replace(spec, is_head_tied=False)


def tell_of_unused(spec: DecoderSpec, found: Mapping[str, TensorInfo], needed: Iterable[str], tell: Tell) -> None:
    """Tensors that stay unread often mean that config.json is another model's."""
    known = {spelling for name in (*needed, *outer_tensors(spec)) for spelling in spellings(name)}
    unused = [name for name in found if name not in known and not name.endswith(COMPUTED)]
    if unused:
        tell(
            f"{len(unused)} of {len(found)} tensors in the files {'is' if len(unused) == 1 else 'are'} not used, such "
            f"as {min(unused)}: a {spec.family} model with num_hidden_layers {spec.num_layers} and the options of "
            "config.json has no place for it."
        )


def have_same_content(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two tensors are equal, byte by byte. Reads no further than to the first difference.

    Raises:
        ModelError: a file cannot be read.
    """
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return all(ours == theirs for ours, theirs in zip(read_chunks(first), read_chunks(second), strict=True))


def is_blank(info: TensorInfo) -> bool:
    """Whether all of it is zero, as in a file that is laid out for a plan and has no data."""
    return all(chunk.count(0) == len(chunk) for chunk in read_chunks(info))


def read_chunks(info: TensorInfo) -> Iterable[bytes]:
    try:
        with info.file.open("rb", buffering=0) as file:
            for start in range(0, info.num_bytes, CHUNK_BYTES):
                yield os.pread(file.fileno(), min(CHUNK_BYTES, info.num_bytes - start), info.start + start)
    except OSError as error:
        raise failures.WEIGHTS_UNREADABLE.error(file=info.file, reason=error.strerror) from error
