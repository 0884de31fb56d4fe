"""Real engine failures: a killed shard, shards that run out of memory, a refused allocation."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

import tgis_server
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

Launch = Callable[..., Any]  # starts a Server of conftest.py

DEADLINE_S = 30.0
DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"
MIB = 1 << 20


def exactly(count: int) -> pb.Parameters:
    return pb.Parameters(stopping=pb.StoppingCriteria(max_new_tokens=count, min_new_tokens=count))


def open_stream(channel: grpc.Channel, num_tokens: int) -> Iterator[pb.GenerationResponse]:
    request = pb.SingleGenerationRequest(request=pb.GenerationRequest(text="Once"), params=exactly(num_tokens))
    return GenerationServiceStub(channel).GenerateStream(request, timeout=DEADLINE_S)


def generate(channel: grpc.Channel, text: str, num_tokens: int) -> str:
    request = pb.BatchedGenerationRequest(requests=[pb.GenerationRequest(text=text)], params=exactly(num_tokens))
    return GenerationServiceStub(channel).Generate(request, timeout=DEADLINE_S).responses[0].text


def test_a_killed_shard_ends_a_stream_with_the_text_of_the_contract(launch: Launch) -> None:
    server = launch("--rehearse", "--rehearse-step-ms", "20")
    with grpc.insecure_channel(server.address) as channel:
        stream = open_stream(channel, 500)
        next(stream), next(stream)

        os.kill(server.pids["shard-0"], signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as raised:
            list(stream)

    text = "Request failed during generation: Could not connect to Text Generation server: "
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.value.details().startswith(text)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_that_does_not_fit_ends_a_group_of_two_and_a_remedy_is_suggested(launch: Launch, rank: int) -> None:
    server = launch("--rehearse", "--rehearse-step-ms", "20", "--num-shard", "2", "--fault", f"shard{rank}:oom@step3")
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as raised:
        list(open_stream(channel, 10))

    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 5
    assert server.last_line == (
        f"shard-{rank}: Step 3 with 1 tokens of 1 sequences does not fit into memory: GPU out of memory. "
        "Lower --max-batch-tokens, --max-batch-size or --kv-cache-memory."
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_warm_up_that_does_not_fit_on_any_shard_ends_with_the_exit_code_for_memory(start: Launch, rank: int) -> None:
    server = start("--rehearse", "--num-shard", "2", "--fault", f"shard{rank}:oom@step0")

    assert server.wait() == 4
    assert server.last_line.startswith(
        f"shard-{rank}: A step of 64 tokens does not fit into the memory that the weights leave free"
    )


# An allocation refused by the operating system

WIDE = 32_768  # size of the MLP: a prompt of 1500 tokens needs 400 MB at once, all else needs little
SPARE_BYTES = 256 * MIB


@pytest.fixture
def wide_model(tmp_path: Path) -> Path:
    """A Llama of one layer whose MLP needs a lot of memory for each token, with the demo model's tokenizer."""
    hidden_size, vocab_size, layer = 64, 1536, "model.layers.0"
    shapes = {f"{layer}.self_attn.{name}_proj": (hidden_size, hidden_size) for name in "qkvo"}
    shapes |= {f"{layer}.mlp.{name}_proj": (WIDE, hidden_size) for name in ("gate", "up")}
    shapes |= {f"{layer}.mlp.down_proj": (hidden_size, WIDE)}
    shapes |= dict.fromkeys(("model.embed_tokens", "lm_head"), (vocab_size, hidden_size))
    shapes |= {f"{layer}.{name}": (hidden_size,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm": (hidden_size,)}
    random = np.random.default_rng(0)
    weights = {f"{name}.weight": random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    config |= {"hidden_size": hidden_size, "intermediate_size": WIDE, "num_hidden_layers": 1, "head_dim": 32}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    return tmp_path


def test_a_refused_allocation_fails_only_its_prompt(launch: Launch, wide_model: Path) -> None:
    whole_prompts = ("--max-batch-tokens", "4096", "--target-inter-token-latency", "1000")
    server = launch("--model-name", str(wide_model), "--dtype", "float32", *whole_prompts)
    shard = psutil.Process(server.pids["shard-0"])
    with grpc.insecure_channel(server.address) as channel:
        expected = generate(channel, "Once", 200)
        stream = open_stream(channel, 200)
        frames = [next(stream), next(stream)]
        limit = shard.memory_info().vms + SPARE_BYTES
        shard.rlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

        with pytest.raises(grpc.RpcError) as raised:
            generate(channel, " a" * 1500, 1)
        shard.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert raised.value.details() == "Request failed during generation: out of memory"
        assert "".join(frame.text for frame in [*frames, *stream]) == expected
        assert generate(channel, " a" * 1500, 1)
        metrics = urllib.request.urlopen(f"{server.facts['http']}/metrics", timeout=DEADLINE_S).read().decode()
    for line in (
        'tgi_request_failure{err="generate"} 1.0',
        'tgi_batch_inference_failure{method="prefill",reason="oom"} 1.0',
        'tgi_batch_inference_failure{method="next_token",reason="oom"} 1.0',
        "tgi_kv_blocks_used 0.0",
    ):
        assert line in metrics.splitlines()
