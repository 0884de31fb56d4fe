"""What the fake engine makes of a model's files: what the engine would that it stands for. No weights are needed.

Also serves models that no engine knows: a rehearsal needs a tokenizer and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tgis_server.engines.catalogue import ModelSummary, find_engine
from tgis_server.errors import ModelError
from tgis_server.model_files import find_length, read_json


def summarize(model_dir: Path, num_shard: int = 1) -> ModelSummary:
    """Never asks whether ``num_shard`` divides the model, as nothing is divided."""
    try:
        _, summary = find_engine(model_dir)
    except ModelError:
        return summarize_unknown(model_dir)
    return replace(summary, valid_num_shards=(), warnings=())


def summarize_unknown(model_dir: Path) -> ModelSummary:
    """What config.json says of itself.

    Raises:
        ModelError: it is missing or broken.
    """
    config = read_json(model_dir / "config.json")
    vocab_size = config.get("vocab_size")
    return ModelSummary(
        kind="encoder_decoder" if config.get("is_encoder_decoder") is True else "decoder",
        family=str(config.get("model_type") or "unknown"),
        layout="",
        vocab_size=vocab_size if isinstance(vocab_size, int) else 0,
        length=find_length(config),
        end_ids=(),
        pad_id=None,
        dtype=None,
        valid_num_shards=(),
        tensors={},
    )


def inspect(model_dir: Path, num_shard: int) -> ModelSummary:
    """Looks at no weights."""
    return summarize(model_dir, num_shard)


def cpu_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Nothing is computed."""
    return {}
