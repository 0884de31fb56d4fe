"""Make random-weight models for benchmarks: ``python scripts/bench/make_models.py [DIR]`` (default ``.cache/bench``).

They have the sizes of well-known small Llamas. The tokenizer is the demo model's with made-up words for the ids that it
lacks: each token has a text, and is streamed at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "server" / "tgis_server" / "demo_model"
DEFAULT_DIR = ROOT / ".cache" / "bench"
COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
MODELS: dict[str, dict[str, Any]] = {
    "llama-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "llama-1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}


def make_model(directory: Path, config: dict[str, Any]) -> None:
    """Write weights, tokenizer and config; the config comes last, marking the model as complete."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(random_weights(config), directory / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(DEMO_MODEL / "tokenizer_config.json", directory)
    (directory / "tokenizer.json").write_text(json.dumps(make_tokenizer(config["vocab_size"])))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    (directory / "config.json").write_text(json.dumps(config, indent=1))


def make_tokenizer(vocab_size: int) -> dict[str, Any]:
    """No merge leads to the added words, so no prompt has them."""
    tokenizer: dict[str, Any] = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab |= {f"\u0120w{number}": number for number in range(len(vocab), vocab_size)}  # U+0120 is a space
    return tokenizer


def random_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights as at initialization: normally distributed, except that those of norms are one."""
    generator = torch.Generator().manual_seed(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv_size = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(0.02).bfloat16()

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    weights = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden), "model.norm.weight": ones()}
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = normal(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": ones(),
            prefix + "self_attn.q_proj.weight": normal(hidden, hidden),
            prefix + "self_attn.k_proj.weight": normal(kv_size, hidden),
            prefix + "self_attn.v_proj.weight": normal(kv_size, hidden),
            prefix + "self_attn.o_proj.weight": normal(hidden, hidden),
            prefix + "post_attention_layernorm.weight": ones(),
            prefix + "mlp.gate_proj.weight": normal(inner, hidden),
            prefix + "mlp.up_proj.weight": normal(inner, hidden),
            prefix + "mlp.down_proj.weight": normal(hidden, inner),
        }
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--model", choices=sorted(MODELS), action="append", help="only this model; may be repeated")
    arguments = parser.parse_args()
    for name in arguments.model or MODELS:
        directory = arguments.directory / name
        if (directory / "config.json").exists():
            print(f"{directory} exists")
            continue
        make_model(directory, {**COMMON, **MODELS[name]})
        print(f"{directory} made")


if __name__ == "__main__":
    main()
