"""A checkpoint that recites: what follows a token is decided by that token alone, so every output is known by hand.

It is a Llama with one layer that adds nothing. Embeddings are random signs, and the output layer maps each token to its
successor. A prompt chooses its story by its last character: the text "D" continues as ``STORIES["D"]``. Every character
of a prompt is a token of its own, after the token that begins every prompt.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS, EOT = SPECIAL = b"<s>", b"</s>", b"<end>"  # two of them end an output
DUCK = "🦆"
STRANGER = "<stranger>"  # the tokenizer has it, but the model does not

# No piece occurs in two stories: it would have two successors.
STORIES: dict[str, list[bytes]] = {
    "A": [b"The", b" old", b" duck", b" swims", b" home", b".", EOS],
    "B": [b"Hi", b" ", b"\xf0", b"\x9f", b"\xa6", b"\x86", b"!", b" bye", EOS],
    "C": [b" one", b" two", b" three", b" one"],  # forever
    "D": [b"xab", b"cab", b"cde", b"f", EOS],
    "E": [b"start", BOS, b"after", EOS],
    "F": [EOS],
    "I": [b"ok", b"\xff", b"go", EOS],
    "J": [b"adieu", EOT],
}
TIES: dict[str, list[bytes]] = {  # equally likely, in the order of their ids
    "G": [b" heads", b" tails"],
    "H": [b" i", b" ii", b" iii", b" iv", b" v", b" vi"],
}
HIDDEN_SIZE = 256
SCALE = 16.0  # a successor's logit is HIDDEN_SIZE / SCALE = 16; other logits differ from 0 by about 1


def recited(story: str, num_tokens: int) -> str:
    """The text of the first tokens of a story; story C repeats forever."""
    told = STORIES[story]
    if told[0] in told[1:]:
        told = told[:-1] * num_tokens
    visible = [piece for piece in told[:num_tokens] if piece not in SPECIAL]
    return b"".join(visible).decode("utf-8", "replace")


def seed_for(text: str, piece: bytes) -> int:
    """The seed with which a rehearsal continues ``text`` with ``piece``: it adds up ids, their number and the seed."""
    pieces = all_pieces()
    ids = [pieces.index(BOS), *(pieces.index(bytes([byte])) for byte in text.encode())]
    return (pieces.index(piece) - sum(ids) - len(ids)) % (len(pieces) + 1)  # a rehearsal counts the stranger


def write_checkpoint(directory: Path) -> None:
    """Save model and tokenizer, as `tgis launch --model-name` reads them."""
    pieces = all_pieces()
    ids = {piece: i for i, piece in enumerate(pieces)}
    embeddings = np.random.default_rng(0).choice(np.float32([-1.0, 1.0]), (len(pieces), HIDDEN_SIZE))
    outputs = np.zeros_like(embeddings)
    for piece, successor in successors():
        outputs[ids[successor]] += embeddings[ids[piece]] / SCALE

    zeros, ones = np.zeros((HIDDEN_SIZE, HIDDEN_SIZE), np.float32), np.ones(HIDDEN_SIZE, np.float32)
    layer = "model.layers.0"
    weights = {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": ones,
        "lm_head.weight": outputs,
        f"{layer}.input_layernorm.weight": ones,
        f"{layer}.post_attention_layernorm.weight": ones,
    }
    weights |= {f"{layer}.self_attn.{name}_proj.weight": zeros for name in "qkvo"}
    weights |= {f"{layer}.mlp.{name}_proj.weight": zeros for name in ("gate", "up", "down")}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    write_json(
        directory / "config.json",
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_size=HIDDEN_SIZE,
        intermediate_size=HIDDEN_SIZE,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=len(pieces),
        max_position_embeddings=4096,
        rms_norm_eps=1e-12,
        hidden_act="silu",
        tie_word_embeddings=False,
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        dtype="float32",
    )
    write_json(directory / "generation_config.json", eos_token_id=[ids[EOS], ids[EOT]])
    write_json(directory / "tokenizer_config.json", bos_token="<s>", eos_token="</s>", add_bos_token=True)
    write_tokenizer(directory / "tokenizer.json", ids)


def all_pieces() -> list[bytes]:
    """The vocabulary: the special tokens, every byte, and what the stories need beyond that."""
    told = [piece for story in (*STORIES.values(), *TIES.values()) for piece in story]
    return list(dict.fromkeys([BOS, EOS, *(bytes([byte]) for byte in range(256)), *told]))


def successors() -> list[tuple[bytes, bytes]]:
    """(token, next token)"""
    pairs = [pair for key, story in STORIES.items() for pair in zip([key.encode(), *story], story, strict=False)]
    pairs += [(key.encode(), piece) for key, tied in TIES.items() for piece in tied]
    pairs += [(piece, EOS) for tied in TIES.values() for piece in tied]
    return list(dict.fromkeys(pairs))


def write_tokenizer(file: Path, ids: dict[bytes, int]) -> None:
    """Write a byte-level tokenizer without merges: every byte of an input is a token."""
    vocabulary = {piece.decode() if piece in SPECIAL else spelled(piece): i for piece, i in ids.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*(piece.decode() for piece in SPECIAL), STRANGER])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS.decode()} $A", special_tokens=[(BOS.decode(), ids[BOS])]
    )
    tokenizer.save(str(file))


def spelled(piece: bytes) -> str:
    """A piece as byte-level vocabularies write it, with the map of GPT-2."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return "".join(chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in piece)


def write_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(values))
