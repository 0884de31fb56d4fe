"""Tiny random T5 checkpoints, and transformers as the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from tiny import VOCAB, edit_config

START = [0]  # first token of the decoder
SIZES = {
    "vocab_size": VOCAB,
    "d_model": 64,
    "d_kv": 12,  # not the hidden size divided by the heads
    "d_ff": 96,
    "num_layers": 3,
    "num_decoder_layers": 2,  # differs from the encoder's, so that confusing the two makes tests fail
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": START[0],
}
V1_0: dict[str, Any] = {}  # a plain MLP with ReLU; a tied head with scaled input
V1_1: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


@dataclass(frozen=True)
class Model:
    """A checkpoint and its transformers model: eager attention, float32."""

    directory: Path
    oracle: T5ForConditionalGeneration
    _expected: dict[str, list[int]] = field(default_factory=dict)

    def expected(self, encoder_ids: list[int], prompt: list[int], num_tokens: int) -> list[int]:
        """Tokens that transformers generates greedily, without ending early; computed once."""
        key = repr((encoder_ids, prompt, num_tokens))
        if key not in self._expected:
            self._expected[key] = self._generate(encoder_ids, prompt, num_tokens)
        return self._expected[key]

    @torch.inference_mode()
    def _generate(self, encoder_ids: list[int], prompt: list[int], num_tokens: int) -> list[int]:
        out = self.oracle.generate(
            torch.tensor([encoder_ids]),
            attention_mask=torch.ones(1, len(encoder_ids), dtype=torch.int64),
            decoder_input_ids=torch.tensor([prompt]),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
        )
        return out[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def logprobs(self, encoder_ids: list[int], decoder_ids: list[int]) -> torch.Tensor:
        """(len(decoder_ids), vocab), in one forward pass."""
        out = self.oracle(torch.tensor([encoder_ids]), decoder_input_ids=torch.tensor([decoder_ids]))
        return out.logits[0].log_softmax(-1)


def make_checkpoint(directory: Path, changes: dict[str, Any], seed: int = 0) -> Model:
    """Save a random T5 with the sizes of ``SIZES`` and these changes, and load it with transformers."""
    config = T5Config(**SIZES, **changes)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config).float()
    is_tied = config.scale_decoder_outputs
    with torch.no_grad():
        if not is_tied:  # transformers ties a head until it is loaded from files
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        for name, parameter in model.named_parameters():
            _draw(name, parameter)
    model.save_pretrained(directory)
    # As in published checkpoints; transformers 5 calls all heads tied and has another key for the scaling.
    edit_config(directory, tie_word_embeddings=is_tied, scale_decoder_outputs=None)
    oracle = T5ForConditionalGeneration.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
    return Model(directory, oracle.eval())


def _draw(name: str, parameter: torch.Tensor) -> None:
    """Draw values with enough variance that attention decides the next token, but not too much for float32."""
    if parameter.dim() == 1:
        parameter.uniform_(0.5, 1.5)
    else:
        stds = {".q.": 0.05, "relative": 2.0, "shared": 1.0, "lm_head": 0.2}  # small queries: scores are not scaled
        parameter.normal_(std=next((std for part, std in stds.items() if part in name), 0.5))
