"""Small in-memory tokenizers, one of each kind that models use."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = ("the", "cat", "sat", "on", "mat", "dog", "été", "日本", "🙂", ".")


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE: every byte is a piece, so characters can be cut anywhere. ``<s>`` is 0, ``</s>`` is 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<s>", "</s>", *alphabet, "Ġt", "Ġth", "Ġthe", "at"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("a", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


@cache
def byte_fallback() -> Tokenizer:
    """Like Llama 2: ``▁`` for spaces, and bytes for characters without a piece. ``</s>`` is 2."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "c", "a", "é"]
    pieces += ["▁t", "▁th", "▁the", "at"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("a", "t")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    return tokenizer


@cache
def metaspace() -> Tokenizer:
    """Like T5: words with their leading space, and ``</s>`` (1) after every input."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    return tokenizer


@cache
def word_piece() -> Tokenizer:
    """Like BERT: ``##`` continues a word; ``[CLS]`` (1) comes before every input and ``[SEP]`` (2) after it."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", *WORDS, "##s", "##ting", "n't", "'", ",", "!", "a"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    return tokenizer


@cache
def end_of_word() -> Tokenizer:
    """Like the first GPT: ``</w>`` ends a word."""
    pieces = ["<unk>", "the</w>", "c", "at</w>", "sat</w>", "s"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return tokenizer


def words(*, decoder: bool = False) -> Tokenizer:
    """Pieces ``t0`` to ``t99``; without a decoder every piece is a word."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(100)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder:
        tokenizer.decoder = decoders.Fuse()
    return tokenizer


KINDS = (byte_level, byte_fallback, metaspace, word_piece, end_of_word, words)
