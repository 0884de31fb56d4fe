"""What comes out of the whole server is what transformers generates, whatever the server does to get there.

Each server gets chunked prefills (a budget smaller than the prompts), preemptions (a pool too small for all requests)
and prefix-cache hits (prompts that begin alike); the tests assert that these really happened.
"""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import grpc
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer, models, pre_tokenizers

import tgis_server
import tiny
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"
FAMILIES = {  # tests/models tests all families, without servers
    "granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0, "residual_multiplier": 0.5},
}
ANYTHING = "a red ball and a blue cup near the old tree, and then her friend came to play with it"
NUM_NEW = 28
BLOCK_SIZE = 8
SEQUENCE_LENGTH = 96


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Makes a random model of a family, with a tokenizer of numbered words and an oracle, but only once per family."""
    torch.set_num_threads(1)
    made = {}

    def make(family):
        if family not in made:
            directory = DEMO_MODEL
            if family != "demo":
                directory = tiny.make_checkpoint(tmp_path_factory.mktemp(family), family, **FAMILIES[family])
                write_tokenizer(directory)
            made[family] = tiny.Model(directory, tiny.Oracle(directory))
        return made[family]

    return make


def write_tokenizer(directory):
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(tiny.VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").unlink(missing_ok=True)
    tiny.edit_config(directory, eos_token_id=None)  # no output ends early


def texts_for(family, tokenizer):
    """Prompts of 5 to about 60 tokens, half of which have a common beginning."""
    if family == "demo":
        common = "Once upon a time, there was a girl named Anna. One sunny day she went to the forest. There she found"
        words = ANYTHING.split()
        return [" ".join(words[i:]) for i in range(5)] + [f"{common} {' '.join(words[:i])}" for i in range(5)]
    common = tiny.prompt_of(33, seed=99)
    lists = [tiny.prompt_of(length, seed=length) for length in (5, 17, 30, 44, 60)]
    lists += [common + tiny.prompt_of(length, seed=length) for length in (1, 4, 9, 20, 27)]
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in lists]


async def generate_all(address, texts, calls):
    """Generate from all texts at once, divided in order among ``calls`` calls; returns each text's generated pieces."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GenerationServiceStub(channel)

        async def generate(some):
            request = pb.BatchedGenerationRequest(
                requests=[pb.GenerationRequest(text=text) for text in some],
                params=pb.Parameters(
                    stopping=pb.StoppingCriteria(max_new_tokens=NUM_NEW),
                    response=pb.ResponseOptions(generated_tokens=True),
                ),
            )
            return [[token.text for token in response.tokens] for response in (await stub.Generate(request)).responses]

        size = len(texts) // calls
        shares = [texts[start : start + size] for start in range(0, len(texts), size)]
        return [pieces for answers in await asyncio.gather(*map(generate, shares)) for pieces in answers]


def read_metric(server, name):
    text = urllib.request.urlopen(server.facts["http"] + "/metrics", timeout=10).read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == name)


def kv_bytes_per_token(oracle):
    config = oracle.model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * head_dim


@pytest.mark.parametrize(("family", "num_shard"), [("demo", 1), ("granite", 2)])
def test_served_tokens_are_those_of_transformers(checkpoint, launch, family, num_shard):
    model = checkpoint(family)
    tokenizer = Tokenizer.from_file(str(model.directory / "tokenizer.json"))
    texts = texts_for(family, tokenizer)
    pool_tokens = 2 * SEQUENCE_LENGTH
    server = launch(
        *(["--model-name", str(model.directory)] if family != "demo" else []),
        *("--dtype", "float32", "--num-shard", str(num_shard), "--kv-block-size", str(BLOCK_SIZE)),
        *("--max-batch-tokens", "24", "--max-sequence-length", str(SEQUENCE_LENGTH)),
        *("--kv-cache-memory", str(pool_tokens * kv_bytes_per_token(model.oracle) // num_shard)),
    )

    # The inputs of a single call arrive together, so in that round no preemption depends on when calls arrive.
    rounds = [asyncio.run(generate_all(server.address, texts, calls)) for calls in (len(texts), 1)]

    prompts = [tokenizer.encode(text).ids for text in texts]
    for answers in rounds:
        for prompt, pieces in zip(prompts, answers, strict=True):
            ours = [tokenizer.token_to_id(piece) for piece in pieces]
            tiny.assert_same_tokens(model.oracle, prompt, ours, model.expected(prompt, NUM_NEW)[: len(ours)])
    assert read_metric(server, "tgi_preemption_count_total") > 0
    assert read_metric(server, "tgi_prefix_cache_hit_tokens_total") > 0
    assert server.stop() == 0
