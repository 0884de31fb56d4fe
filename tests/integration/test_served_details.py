"""Facts about tokens from the server are those of transformers, even after chunked prefills, preemptions or cache hits.

The pool holds two of the eight sequences, a step computes 24 tokens, and each input is sent
twice.
"""

from __future__ import annotations

import math
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer

import tgis_server
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub
from tiny import Oracle

DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"
STORY = "Once upon a time, there was a girl named Anna. One sunny day she went to the forest. There she found "
INPUTS = [STORY + ending for ending in ("", "a", "a red", "a red ball", "a red ball and a blue cup", "Ben", "her cat")]
INPUTS.append("Hello")
NUM_NEW, TOP_N, SEQUENCE_LENGTH = 28, 3, 96
KV_BYTES_PER_TOKEN = 2 * 4 * 5 * 2 * 32  # keys and values, float32, 5 layers, 2 heads of 32


def parameters(*, input_tokens: bool) -> pb.Parameters:
    return pb.Parameters(
        stopping=pb.StoppingCriteria(max_new_tokens=NUM_NEW),
        response=pb.ResponseOptions(
            generated_tokens=True,
            input_tokens=input_tokens,
            token_logprobs=True,
            token_ranks=True,
            top_n_tokens=TOP_N,
        ),
    )


def assert_described(info: pb.TokenInfo, logits: torch.Tensor, tokenizer: Tokenizer) -> None:
    """Check that the logprob, rank and alternatives of a token follow from the logits before it."""
    logprobs = logits.log_softmax(-1)
    value = float(logprobs[tokenizer.token_to_id(info.text)])
    assert info.logprob == pytest.approx(value, abs=1e-4)
    assert int((logprobs > value + 1e-4).sum()) < info.rank <= 1 + int((logprobs > value - 1e-4).sum())
    assert [top.logprob for top in info.top_tokens] == pytest.approx(logprobs.topk(TOP_N).values.tolist(), abs=1e-4)
    for top in info.top_tokens:
        assert top.logprob == pytest.approx(float(logprobs[tokenizer.token_to_id(top.text)]), abs=1e-4)


def read_metric(http: str, name: str) -> float:
    text = urllib.request.urlopen(http + "/metrics", timeout=10).read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == name)


def test_served_details_are_those_of_transformers(launch):
    torch.set_num_threads(1)
    oracle, tokenizer = Oracle(DEMO_MODEL), Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    server = launch(
        *("--dtype", "float32", "--kv-block-size", "8", "--max-batch-tokens", "24"),
        *("--max-sequence-length", str(SEQUENCE_LENGTH)),
        *("--kv-cache-memory", str(2 * SEQUENCE_LENGTH * KV_BYTES_PER_TOKEN)),
    )

    with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(len(INPUTS)) as pool:
        stub = GenerationServiceStub(channel)

        def generate(*, input_tokens: bool) -> list[pb.GenerationResponse]:
            requests = [pb.GenerationRequest(text=text) for text in INPUTS]
            request = pb.BatchedGenerationRequest(requests=requests, params=parameters(input_tokens=input_tokens))
            return list(stub.Generate(request).responses)

        def stream(text: str) -> pb.GenerationResponse:
            request = pb.GenerationRequest(text=text)
            frames = stub.GenerateStream(
                pb.SingleGenerationRequest(request=request, params=parameters(input_tokens=True))
            )
            whole = pb.GenerationResponse()
            for frame in frames:
                whole.tokens.extend(frame.tokens)
                whole.input_tokens.extend(frame.input_tokens)
            return whole

        unary, streamed = generate(input_tokens=True), list(pool.map(stream, INPUTS))
        preemptions = read_metric(server.facts["http"], "tgi_preemption_count_total")
        cached = generate(input_tokens=False)

    for text, *answers in zip(INPUTS, unary, streamed, cached, strict=True):
        prompt = tokenizer.encode(text).ids
        for answer in answers:
            output = [tokenizer.token_to_id(token.text) for token in answer.tokens]
            logits = oracle.logits(prompt + output)
            for position, token in enumerate(answer.tokens, start=len(prompt) - 1):
                assert_described(token, logits[position], tokenizer)
            assert [token.rank for token in answer.tokens] == [1] * len(output)
        for answer in answers[:2]:
            first, *others = answer.input_tokens
            assert [tokenizer.token_to_id(token.text) for token in answer.input_tokens] == prompt
            assert (math.isnan(first.logprob), first.rank, len(first.top_tokens)) == (True, 0, 0)
            for position, token in enumerate(others):
                assert_described(token, logits[position], tokenizer)
    assert preemptions > 0
    assert read_metric(server.facts["http"], "tgi_prefix_cache_hit_tokens_total") > 0
    assert server.stop() == 0
