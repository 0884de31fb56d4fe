"""Checks the headers of a model's safetensors files against its spec before weights are read. Imports no torch.

A head in the files is used even if config.json calls it tied, unless it equals the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from tgis_server import failures
from tgis_server.engines.door import StepWork
from tgis_server.engines.native.families import outer_tensors, parameters_of
from tgis_server.engines.native.parameters.pieces import (
    Kind,
    Parameter,
    can_split,
    kv_heads_of,
    slice_of,
    valid_num_shards,
)
from tgis_server.engines.native.spec import DecoderSpec
from tgis_server.model_files import (
    HEADER_DTYPES,
    ITEM_BYTES,
    Find,
    Tell,
    TensorInfo,
    find_tensor,
    have_same_content,
    is_blank,
    read_tensors,
    spellings,
)

# Frequencies and masks that old checkpoints contain, although they can be computed.
OBSOLETE_BUFFERS = (
    "rotary_emb.inv_freq",
    *(f".{at}.{what}" for at in ("attn", "attention") for what in ("bias", "masked_bias")),
)
OF_IMAGES = ("vision_tower.", "multi_modal_projector.")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete, readable checkpoint for ``num_shard`` ranks."""

    spec: DecoderSpec  # its head is tied only if the files agree
    num_shard: int
    tensors: dict[str, TensorInfo]  # by the names in ``parameters``; files may spell them differently
    parameters: tuple[Parameter, ...]
    dtype: str  # of most weights
    warnings: tuple[str, ...] = ()

    def num_elements(self, rank: int) -> int:
        """Number of weights on ``rank``."""
        return sum(self.elements_of(parameter, rank) for parameter in self.parameters)

    def elements_of(self, parameter: Parameter, rank: int) -> int:
        """Number of a parameter's weights on ``rank``."""
        return sum(slice_of(piece, self.spec, rank, self.num_shard).num_elements for piece in parameter.pieces)

    def weight_bytes(self, rank: int, dtype: str) -> int:
        """Bytes of the weights on ``rank``, held as ``dtype``."""
        return self.num_elements(rank) * ITEM_BYTES[dtype]

    def kv_bytes_per_token(self, rank: int, dtype: str) -> int:
        """Bytes of one token's keys and values on ``rank``, in all layers."""
        return self.spec.num_layers * self.layer_kv_bytes(rank, dtype)

    def layer_kv_bytes(self, rank: int, dtype: str) -> int:
        """The same in one layer."""
        heads = len(kv_heads_of(self.spec, rank, self.num_shard))
        return 2 * heads * self.spec.head_dim * ITEM_BYTES[dtype]

    def step_work(self, rank: int, dtype: str) -> StepWork:
        """What a step reads and computes on ``rank``. The encoder of an encoder-decoder counts as a part of it."""
        spec = self.spec
        head_name = outer_tensors(spec)[0 if spec.is_head_tied else 1]
        looked_up = linear = head = experts = 0
        for parameter in self.parameters:
            elements = self.elements_of(parameter, rank)
            if parameter.pieces[0].tensor == head_name:
                head = elements
            elif parameter.kind is Kind.EMBEDDING:
                looked_up += elements
            elif ".experts." in parameter.name:
                experts += elements
            elif parameter.kind is Kind.LINEAR:
                linear += elements
        share = spec.mixture.num_chosen / spec.mixture.num_experts if spec.mixture else 0.0
        return StepWork(
            weight_bytes=(self.num_elements(rank) - looked_up - experts) * ITEM_BYTES[dtype],
            token_flops=2 * linear + round(2 * experts * share),
            head_flops=2 * head,
            layer_kv_bytes=self.layer_kv_bytes(rank, dtype),
            layer_pair_flops=4 * spec.num_heads // self.num_shard * spec.head_dim,
            windows=spec.windows or (None,) * spec.num_layers,
            expert_bytes=experts * ITEM_BYTES[dtype],
            expert_share=share,
        )


def inspect_checkpoint(model_dir: Path, spec: DecoderSpec, num_shard: int) -> Checkpoint:
    """Check that the checkpoint is complete and can be divided among ``num_shard`` ranks.

    Tensor data is read only to choose between tensors that cannot be told apart by name.

    Raises:
        ModelError: a file or tensor is missing, truncated or ambiguous, or a tensor has the wrong shape or is not
            floating point.
        UsageError: ``num_shard`` does not divide the model.
    """
    check_num_shard(spec, num_shard)
    warnings = list(spec.warnings)
    found = read_tensors(model_dir, warnings.append)
    find = cache(partial(find_tensor, found))  # comparing tensors reads their data: once per pair
    spec = settle_head(spec, find, warnings.append)
    parameters = tuple(parameters_of(spec))
    needed: dict[str, TensorInfo] = {}
    elements: dict[str, int] = {}
    for parameter in parameters:
        for piece in parameter.pieces:
            info = find_needed(piece.tensor, find, spec, model_dir)
            if info.shape != piece.tensor_shape:
                raise failures.TENSOR_SHAPE.error(
                    file=info.file, tensor=info.name, shape=list(info.shape), expected=list(piece.tensor_shape)
                )
            if info.dtype not in HEADER_DTYPES:
                raise failures.TENSOR_DTYPE.error(
                    file=info.file, tensor=info.name, dtype=info.dtype, dtypes=", ".join(HEADER_DTYPES)
                )
            needed[piece.tensor] = info
            elements[info.dtype] = elements.get(info.dtype, 0) + piece.rows * max(piece.columns, 1)
    warn_of_unused(spec, found, needed, warnings.append)
    dtype = HEADER_DTYPES[max(elements, key=lambda name: elements[name])]
    return Checkpoint(spec, num_shard, needed, parameters, dtype, tuple(warnings))


def find_needed(name: str, find: Find, spec: DecoderSpec, model_dir: Path) -> TensorInfo:
    """The tensor of that name; a tied model may store its embedding as the head."""
    info = find(name)
    if info is not None:
        return info
    embedding, head = outer_tensors(spec)
    if name == embedding and spec.is_head_tied and (info := find(head)) is not None:
        return info
    if name == head:
        raise failures.HEAD_MISSING.error(model_dir=model_dir, tensor=name)
    raise failures.TENSOR_MISSING.error(
        model_dir=model_dir, tensor=name, family=spec.family, num_layers=spec.num_layers
    )


def check_num_shard(spec: DecoderSpec, num_shard: int) -> None:
    if not can_split(spec, num_shard):
        raise failures.SHARDS_DO_NOT_DIVIDE.error(
            num_shard=num_shard,
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            mlp=" and ".join(map(str, sorted(spec.inner_sizes))),
            valid=", ".join(map(str, valid_num_shards(spec))),
        )


def settle_head(spec: DecoderSpec, find: Find, warn: Tell) -> DecoderSpec:
    """The spec, with the head tied only if the files agree with config.json, as in transformers 5.

    If the files of a tied model hold only the head, that head is the embedding too.
    """
    embedding, head = map(find, outer_tensors(spec))
    if not spec.is_head_tied or head is None or embedding is None:
        return spec
    if not have_same_content(head, embedding):
        differs = f"differs from {embedding}"
        if head.dtype != embedding.dtype:
            differs = f"is stored as {head.dtype}, whereas {embedding} is stored as {embedding.dtype}"
        warn(
            f"config.json sets tie_word_embeddings, but {head} {differs}, so the head is not tied. Set "
            "tie_word_embeddings to false in config.json to confirm that."
        )
    elif not is_blank(head):
        return spec
    return replace(spec, is_head_tied=False)


def warn_of_unused(spec: DecoderSpec, found: Mapping[str, TensorInfo], needed: Iterable[str], warn: Tell) -> None:
    """Unused tensors often mean that config.json belongs to another model."""
    known = {spelling for name in (*needed, *outer_tensors(spec)) for spelling in spellings(name)}
    unused = [name for name in found if name not in known and not name.endswith(OBSOLETE_BUFFERS)]
    if images := [name for name in unused if name.removeprefix("model.").startswith(OF_IMAGES)]:
        warn(f"This model also takes images, for which {len(images)} tensors are unused: only its text part is served.")
        unused = [name for name in unused if name not in images]
    if unused:
        warn(
            f"{len(unused)} of {len(found)} tensors in the files {'is' if len(unused) == 1 else 'are'} not used, such "
            f"as {min(unused)}: a {spec.family} model with num_hidden_layers {spec.num_layers} and the other settings "
            "in config.json has no such tensor."
        )
