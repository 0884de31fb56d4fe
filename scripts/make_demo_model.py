"""Train the demo model that `tgis launch` serves when no model is given.

A small Llama (8 heads, 2 KV heads) learns the small language of `demo_grammar.py` from text generated during
training, so no data is needed. Some names never occur with some places in that text; the evaluation starts
texts with exactly those pairs, lets the model continue them greedily, and parses the results.

    python scripts/make_demo_model.py              # train, evaluate, replace the packaged model
    python scripts/make_demo_model.py --check      # only evaluate the packaged model

Needs torch, transformers, tokenizers and safetensors, but no GPU and no network. With the defaults it takes
about 20 minutes on two cores. Two runs on the same machine with the same library versions give the same bytes;
another processor or version may round differently, so the evaluation decides whether a model is kept.

The new files are written to a temporary directory, evaluated there, and only then moved into place: an
interrupted or failed run changes nothing.
"""

import argparse
import itertools
import json
import math
import random
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_grammar import (
    LANGUAGE,
    NAMES,
    PLACES,
    GrammarError,
    Pair,
    language,
    parse,
    write,
    write_document,
)

PACKAGED_MODEL = Path(__file__).resolve().parent.parent / "server" / "tgis_server" / "demo_model"
MAX_FILES_BYTES = 8_000_000  # of all files together
MAX_POSITIONS = 2048

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
IGNORED = -100  # a target that adds no loss

NUM_HELD_OUT = 100
MAX_CONTINUATION_TOKENS = 150
MAX_FAULTY_SHOWN = 10
ROW_TOKENS_MULTIPLE = 16
SPLIT_SHARE = 0.1  # share of documents that are tokenized in two pieces; see `encode`


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the trained weights depend on."""

    seed: int = 1
    steps: int = 2200
    tokens_per_step: int = 2048
    long_row_tokens: int = 1024
    long_rows_share: float = 0.12  # share of the steps, at the end; see `training_batches`
    matrix_learning_rate: float = 8e-3
    vector_learning_rate: float = 3e-3
    warmup_share: float = 0.02
    cooldown_share: float = 0.4
    vocab_size: int = 1536
    num_tokenizer_documents: int = 20_000
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 5
    num_heads: int = 8
    num_kv_heads: int = 2

    @property
    def num_short_steps(self) -> int:
        """The number of steps before those with long rows."""
        return self.steps - round(self.steps * self.long_rows_share)

    def learning_rate_factor(self, step: int) -> float:
        """Rise linearly, stay constant, and fall linearly to zero."""
        warmup = (step + 1) / (self.steps * self.warmup_share)
        cooldown = (self.steps - step) / (self.steps * self.cooldown_share)
        return min(1.0, warmup, cooldown)


def seeded(settings: Settings, purpose: str) -> random.Random:
    """A separate random generator for each purpose."""
    return random.Random(f"{settings.seed} {purpose}")  # noqa: S311 - to be repeatable, not secret


# --- The text ----------------------------------------------------------------------------------------------


def held_out_pairs(settings: Settings) -> list[Pair]:
    """Choose pairs of name and place that never occur together in the training text."""
    every_pair = [(name, place) for name in NAMES for place in PLACES]
    return seeded(settings, "held out").sample(every_pair, NUM_HELD_OUT)


def training_documents(settings: Settings, purpose: str) -> Iterator[str]:
    """Yield an endless stream of documents."""
    rng, unseen = seeded(settings, purpose), frozenset(held_out_pairs(settings))
    while True:
        yield write_document(rng, unseen)


def held_out_prompt(pair: Pair, rng: random.Random) -> str:
    """The beginning of a text about a pair, cut at a space after both are mentioned."""
    name, place = pair
    kinds, weights = list(LANGUAGE), [weight for weight, _ in LANGUAGE.values()]
    while True:
        [kind] = rng.choices(kinds, weights)
        text = write(language()[kind], {"hero": name, "place": place}, rng)
        mentions = [re.search(rf"\b{word}\b", text) for word in pair]
        starts = [mention.end() for mention in mentions if mention]
        cuts = [space.start() for space in re.finditer(r"\s", text) if space.start() >= max(starts, default=0)]
        if len(starts) == len(pair) and cuts:
            return text[: rng.choice(cuts)]


def held_out_prompts(settings: Settings) -> list[str]:
    """One beginning of a text per held-out pair."""
    rng = seeded(settings, "prompts")
    return [held_out_prompt(pair, rng) for pair in held_out_pairs(settings)]


# --- The tokenizer -----------------------------------------------------------------------------------------


def train_tokenizer(settings: Settings) -> Tokenizer:
    """Train a byte-level BPE tokenizer, which can encode any text, not only that of the grammar."""
    documents = training_documents(settings, "tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [next(documents) for _ in range(settings.num_tokenizer_documents)],
        trainers.BpeTrainer(
            vocab_size=settings.vocab_size,
            special_tokens=[BOS, EOS],  # in this order: BOS_ID, EOS_ID
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def encode(document: str, tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Encode a document, with its end token.

    A prompt may end inside a word or with a space, where the whole text has no token boundary. Some documents
    are therefore encoded in two pieces, so that the model sees such boundaries.
    """
    cut = rng.randrange(1, len(document)) if rng.random() < SPLIT_SHARE else len(document)
    ids: list[int] = tokenizer.encode(document[:cut]).ids
    rest: list[int] = tokenizer.encode(document[cut:], add_special_tokens=False).ids
    return [*ids, *rest, EOS_ID]


# --- Training ----------------------------------------------------------------------------------------------


def short_batches(settings: Settings, stream: Iterator[list[int]]) -> Iterator[list[list[int]]]:
    """Yield batches of documents of similar length; a batch is complete when its rows fill a step.

    Widths are multiples of `ROW_TOKENS_MULTIPLE`, because each new shape of a matrix product has a setup cost.
    """
    waiting: dict[int, list[list[int]]] = defaultdict(list)
    for document in stream:
        width = math.ceil((len(document) - 1) / ROW_TOKENS_MULTIPLE) * ROW_TOKENS_MULTIPLE
        waiting[width].append(document + [IGNORED] * (width + 1 - len(document)))
        if (len(waiting[width]) + 1) * width > settings.tokens_per_step:
            yield waiting.pop(width)


def long_batches(settings: Settings, stream: Iterator[list[int]]) -> Iterator[list[list[int]]]:
    """Concatenate documents and cut them into rows of equal length."""
    ids = itertools.chain.from_iterable(stream)
    num_rows = max(1, settings.tokens_per_step // settings.long_row_tokens)
    while True:
        yield [list(itertools.islice(ids, settings.long_row_tokens + 1)) for _ in range(num_rows)]


def training_batches(settings: Settings, tokenizer: Tokenizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each step's inputs and targets, both (num_rows, row_tokens).

    At first each row is one document: repeating a name is learned sooner if there is no other text. Later rows
    contain several documents, so that the model also works far from the start of a row.
    """
    documents, rng = training_documents(settings, "training"), seeded(settings, "splits")
    stream = (encode(document, tokenizer, rng) for document in documents)
    short = itertools.islice(short_batches(settings, stream), settings.num_short_steps)
    long = itertools.islice(long_batches(settings, stream), settings.steps - settings.num_short_steps)
    for rows in itertools.chain(short, long):
        ids = torch.tensor(rows)
        inputs, targets = ids[:, :-1], ids[:, 1:]
        yield inputs.masked_fill(inputs == IGNORED, EOS_ID), targets


def model_config(settings: Settings) -> LlamaConfig:
    """The model's transformers configuration."""
    return LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.hidden_size // settings.num_heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=None,
        use_cache=True,
    )


@contextmanager
def reproducible_torch(seed: int, threads: int) -> Iterator[None]:
    """Make torch deterministic within the block, and restore its settings afterwards."""
    threads_before = torch.get_num_threads()
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(deterministic_before)


class Progress:
    """Prints a line every ``every_steps`` steps: loss since the last line, speed, and time left."""

    def __init__(self, settings: Settings, every_steps: int = 50) -> None:
        self.settings = settings
        self.every_steps = every_steps
        self.started_s = time.monotonic()
        self.num_tokens = 0
        self.losses: list[float] = []

    def report(self, step: int, loss: float, *, num_tokens: int) -> None:
        """Record a finished step (counted from 0)."""
        self.losses.append(loss)
        self.num_tokens += num_tokens
        done = step + 1
        if done % self.every_steps and done != self.settings.steps:
            return
        elapsed_s = time.monotonic() - self.started_s
        left_s = elapsed_s / done * (self.settings.steps - done)
        print(
            f"step {done:5d} of {self.settings.steps}  loss {sum(self.losses) / len(self.losses):.4f}  "
            f"{self.num_tokens / elapsed_s:.0f} tokens/s  {int(left_s // 60)} min {int(left_s % 60):02d} s left",
            flush=True,
        )
        self.losses.clear()


def make_optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, and AdamW for embedding and norms.

    With AdamW alone the model needs several times as many steps before it repeats names and colours reliably.
    """
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.vector_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_model(settings: Settings, tokenizer: Tokenizer, *, threads: int = 2) -> LlamaForCausalLM:
    """Train from scratch. The weights stay float32; the matrix products run in bfloat16, which is faster."""
    with reproducible_torch(settings.seed, threads):
        model = LlamaForCausalLM(model_config(settings))
        optimizers = make_optimizers(model, settings)
        schedules = [LambdaLR(optimizer, settings.learning_rate_factor) for optimizer in optimizers]
        progress = Progress(settings)
        for step, (inputs, targets) in enumerate(training_batches(settings, tokenizer)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(input_ids=inputs, use_cache=False).logits
            loss = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            model.zero_grad()
            progress.report(step, loss.item(), num_tokens=targets.numel())
        return model


# --- The files ---------------------------------------------------------------------------------------------


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files of a Hugging Face model in bfloat16."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, do_sample=False
    )
    model.bfloat16().save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def files_bytes(directory: Path) -> int:
    """Total size of all files."""
    return sum(file.stat().st_size for file in directory.iterdir())


def put_in_place(finished: Path, output: Path) -> None:
    """Replace the old directory with the finished one, so that old and new files are never mixed."""
    finished.chmod(0o755)  # temporary directories are private, and so are some files that safetensors writes
    for file in finished.iterdir():
        file.chmod(0o644)
    outdated = finished.with_name(finished.name + ".old")
    if output.exists():
        output.rename(outdated)
    finished.rename(output)
    shutil.rmtree(outdated, ignore_errors=True)


# --- The evaluation ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt, its continuation, and whether the model ended it."""

    prompt: str
    text: str
    is_finished: bool

    @property
    def fault(self) -> str | None:
        """Why the text is not in the language, or None if it is."""
        if not self.is_finished:
            return "does not end"
        try:
            parse(self.prompt + self.text)
        except GrammarError as error:
            return str(error)
        return None


def continue_greedily(directory: Path, prompts: list[str]) -> list[Continuation]:
    """Let the saved model, in float32, continue prompts until its end token."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    inputs = tokenizer(prompts, padding=False)["input_ids"]
    width = max(len(ids) for ids in inputs)
    padded = torch.tensor([[EOS_ID] * (width - len(ids)) + ids for ids in inputs])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in inputs])
    outputs = model.generate(  # type: ignore[misc]
        input_ids=padded,
        attention_mask=mask,
        max_new_tokens=MAX_CONTINUATION_TOKENS,
        do_sample=False,
        pad_token_id=EOS_ID,
    )
    continuations = []
    for prompt, ids in zip(prompts, outputs[:, width:].tolist(), strict=True):
        is_finished = EOS_ID in ids
        kept = ids[: ids.index(EOS_ID)] if is_finished else ids
        continuations.append(Continuation(prompt, tokenizer.decode(kept), is_finished))
    return continuations


def evaluate(directory: Path, settings: Settings) -> int:
    """Count the held-out continuations that parse, and print those that do not."""
    continuations = continue_greedily(directory, held_out_prompts(settings))
    faulty = [continuation for continuation in continuations if continuation.fault]
    for continuation in faulty[:MAX_FAULTY_SHOWN]:
        print(f"--- {continuation.fault}\n{continuation.prompt} >>>{continuation.text}")
    return len(continuations) - len(faulty)


# --- The command -------------------------------------------------------------------------------------------


def read_arguments() -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(description="Train the demo model of `tgis launch` on generated text.")
    parser.add_argument("--output", type=Path, default=PACKAGED_MODEL, help="directory to replace (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed for text and weights (%(default)s)")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimizer steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; affects rounding (%(default)s)")
    parser.add_argument(
        "--required",
        type=int,
        default=95,
        help="continuations that must parse to keep the model (%(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="only evaluate the model in --output")
    return parser.parse_args()


def main() -> int:
    """Train, evaluate, and keep the model if it is good enough; return the exit code."""
    arguments = read_arguments()
    settings = replace(Settings(), seed=arguments.seed, steps=arguments.steps)
    if arguments.check:
        good = evaluate(arguments.output, settings)
        print(f"{good} of {NUM_HELD_OUT} held-out continuations parse")
        return 0 if good >= arguments.required else 1

    output: Path = arguments.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as workplace:
        finished = Path(workplace) / output.name
        finished.mkdir()
        tokenizer = train_tokenizer(settings)
        save(train_model(settings, tokenizer, threads=arguments.threads), tokenizer, finished)
        print(f"{files_bytes(finished):,} bytes in {len(list(finished.iterdir()))} files")
        good = evaluate(finished, settings)
        print(f"{good} of {NUM_HELD_OUT} held-out continuations parse")
        if files_bytes(finished) > MAX_FILES_BYTES:
            print(f"not kept: more than {MAX_FILES_BYTES:,} bytes")
            return 1
        if good < arguments.required:
            print(f"not kept: fewer than {arguments.required} parse; train longer (--steps) or lower --required")
            return 1
        put_in_place(finished, output)
        print(f"the model is in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
