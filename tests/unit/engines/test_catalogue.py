"""The catalogue of engines and their doors: everything that other code knows about engines before loading."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from test_preflight import machine, make_run
from tgis_cli.decide.decisions import Decisions
from tgis_cli.decide.resources import choose_num_shard
from tgis_cli.machine import Gpu
from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_cli.model_files.download.remote_headers import write_converted_header
from tgis_cli.supervisor.environment import child_environment
from tgis_server.engines.catalogue import (
    ENGINES,
    NATIVE,
    REHEARSAL,
    Engine,
    find_engine,
    find_named,
    get_engine,
)
from tgis_server.engines.door import Door, ModelSummary
from tgis_server.engines.load import load_runner
from tgis_server.engines.native.memory import GATHERED_BYTES, MAX_PRIMITIVES, PRIMITIVE_BYTES
from tgis_server.errors import ModelError, UsageError
from tgis_server.model_files import Length
from tgis_server.options import ServeConfig, load_config
from tgis_server.run import Run
from tgis_server.threads import Threads

REPOSITORY = Path(__file__).resolve().parents[3]
# modules of engines/ that other code may import
LAUNCHER_MODULES = {"catalogue", "door", "api"}  # the last one for the engine's benchmark, which leads shards itself
SHARD_MODULES = LAUNCHER_MODULES | {"load"}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": [7, 200],
    "pad_token_id": 3,
}


def model_with(directory: Path, **config: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


# -- Imports and names -------------------------------------------------------------------------------------------------


def parse(directory: str) -> Iterator[tuple[Path, ast.AST]]:
    """Every node of all files below a directory, except those of the engines."""
    for file in sorted((REPOSITORY / directory).rglob("*.py")):
        if "engines" not in file.parts:
            for node in ast.walk(ast.parse(file.read_text())):
                yield file, node


def imported_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Full names of everything imported, even inside functions."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(("directory", "modules"), [("tgis_cli", LAUNCHER_MODULES), ("server", SHARD_MODULES)])
def test_other_code_imports_only_the_contracts_and_the_catalogue(directory: str, modules: set[str]) -> None:
    names = imported_names(node for _, node in parse(directory))

    assert {name.split(".")[2] for name in names if name.startswith("tgis_server.engines.")} - modules == set()


def test_engines_import_neither_the_catalogue_nor_the_loader() -> None:
    engines = REPOSITORY / "server/tgis_server/engines"
    files = [file for file in engines.rglob("*.py") if file not in {engines / "catalogue.py", engines / "load.py"}]

    names = imported_names(node for file in files for node in ast.walk(ast.parse(file.read_text())))

    forbidden = ("tgis_server.engines.catalogue", "tgis_server.engines.load")
    assert [name for name in names if f"{name}.".startswith(tuple(f"{module}." for module in forbidden))] == []


@pytest.mark.parametrize("directory", ["tgis_cli", "server"])
def test_no_other_code_names_an_engine(directory: str) -> None:
    named = [(str(file), node.value) for file, node in parse(directory) if isinstance(node, ast.Constant)]

    assert [found for found in named if found[1] in ENGINES] == []


def test_help_catalogue_and_doors_do_not_import_torch() -> None:
    program = (
        "import sys; from pathlib import Path; from tgis_cli.app import main; sys.argv = ['tgis', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('tgis_server.engines')])\n"
        "from tgis_server.engines.catalogue import ENGINES\n"
        f"for engine in ENGINES.values(): engine.door.inspect(Path({str(DEMO_MODEL_DIR)!r}), 1)\n"
        "print('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-2:] == ["[]", "False"]


# -- Looking engines up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: get_engine(run.engine),
        lambda run: load_runner(run, 0, lambda *_: None),
        Threads.of,
        lambda run: child_environment(run, 0, {}),
    ],
)
def test_an_unknown_engine_is_an_error_everywhere(ask: Callable[[Run], object]) -> None:
    with pytest.raises(UsageError, match=r"This version has no engine 'natvie', only native and fake"):
        ask(make_run(Path(), engine="natvie", shard_threads=1))


@pytest.mark.parametrize(
    ("framework", "engine"), [(None, None), ("tgis_native", NATIVE), ("hf_custom_tp", NATIVE), ("ibm_fms", None)]
)
def test_frameworks_of_the_original_select_engines(framework: str | None, engine: Engine | None) -> None:
    assert find_named(framework) is engine


# -- Doors -------------------------------------------------------------------------------------------------------------


def signature_of(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.annotation, p.default) for p in parameters if p.name != "self"]


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("question", [name for name in vars(Door) if not name.startswith("_")])
def test_every_engine_implements_its_door(engine: Engine, question: str) -> None:
    assert signature_of(getattr(engine.door, question)) == signature_of(getattr(Door, question))


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_engine_describes_the_demo_model(engine: Engine) -> None:
    summary = engine.door.inspect(DEMO_MODEL_DIR, 1)

    described = (summary.kind, summary.family, summary.vocab_size, summary.length, summary.end_ids, summary.dtype)
    expected_length = Length(2048, "max_position_embeddings of config.json")
    assert described == ("decoder", "llama", 1536, expected_length, (1,), "bfloat16")
    assert (summary.sizes is not None) == engine.computes


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_a_runner_has_places_for_adapters_if_the_catalogue_names_some(engine: Engine, tmp_path: Path) -> None:
    run = make_run(tmp_path, engine=engine.name, model_dir=DEMO_MODEL_DIR, num_shard=1, dtype="float32")

    runner = load_runner(run, 0, lambda *_: None)
    runner.close()

    assert (runner.capacity.max_adapters > 0) == bool(engine.adapters)


def test_config_json_alone_gives_everything_but_sizes(tmp_path: Path) -> None:
    summary = NATIVE.door.summarize(model_with(tmp_path, **LLAMA))

    assert summary.tensors["model.layers.1.self_attn.k_proj.weight"] == (32, 64)
    assert "The end token 200 of" in summary.warnings[0]
    assert replace(summary, tensors={}, warnings=()) == ModelSummary(
        kind="decoder",
        family="llama",
        layout="2 layers of 64 with 4 heads (2 for KV)",
        vocab_size=100,
        length=Length(512, "max_position_embeddings of config.json"),
        end_ids=(7,),
        pad_id=3,
        dtype=None,
        valid_num_shards=(1, 2, 4),
        tensors={},
    )


def test_headers_give_dtype_and_sizes_for_any_number_of_shards(tmp_path: Path) -> None:
    write_converted_header(model_with(tmp_path, **LLAMA))

    summary = NATIVE.door.inspect(tmp_path, 1)
    sizes = summary.sizes

    assert sizes is not None
    assert summary.dtype == "float32"
    assert [sizes.kv_bytes_per_token(0, num_shard, "float16") for num_shard in (1, 2, 4)] == [256, 128, 128]
    memory = sizes.rank_memory(make_run(tmp_path, num_shard=2, dtype="float32", device="cuda"), 1)
    assert memory.weight_bytes == sizes.weight_bytes(1, 2, "float32") < sizes.weight_bytes(0, 1, "float32")
    assert memory.kv_bytes_per_token == sizes.kv_bytes_per_token(1, 2, "float32")


def test_compiled_operations_pad_blocks_compute_in_float32_and_keep_no_primitives_or_copies(
    tmp_path: Path,
) -> None:
    write_converted_header(model_with(tmp_path, **LLAMA))
    sizes = NATIVE.door.inspect(tmp_path, 1).sizes
    assert sizes is not None
    facts: dict[str, Any] = {"device": "cpu", "num_shard": 1, "config": ServeConfig(kv_block_size=8)}
    in_float32, in_bf16, torchs = (
        sizes.rank_memory(make_run(tmp_path, **facts, dtype=dtype, cpu_ops=cpu_ops), 0)
        for dtype, cpu_ops in (("float32", "avx2"), ("bfloat16", "avx2"), ("float32", "reference"))
    )

    kept = MAX_PRIMITIVES * PRIMITIVE_BYTES + GATHERED_BYTES
    assert in_float32.step_bytes == in_bf16.step_bytes == torchs.step_bytes - kept
    assert in_float32.kv_bytes_per_token == 2 * in_bf16.kv_bytes_per_token
    assert in_float32.kv_bytes_per_token == 2 * torchs.kv_bytes_per_token  # a panel has 16 tokens
    assert in_float32.weight_bytes == torchs.weight_bytes == 2 * in_bf16.weight_bytes


@pytest.mark.parametrize("ask", [NATIVE.door.summarize, NATIVE.door.inspect])
def test_a_number_of_shards_that_does_not_divide_the_model_is_refused(ask: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1, 2, 4"):
        ask(model_with(tmp_path, **LLAMA), 3)


def test_a_rehearsal_has_the_length_of_the_engine_that_it_stands_for(tmp_path: Path) -> None:
    model_with(tmp_path, **LLAMA, rope_scaling={"type": "linear", "factor": 2.0})

    summary = REHEARSAL.door.inspect(tmp_path, 3)

    assert (summary.length, summary.warnings) == (NATIVE.door.summarize(tmp_path).length, ())
    assert summary.length is not None
    assert summary.length.num_tokens == 1024


def test_a_rehearsal_serves_models_that_no_engine_serves(tmp_path: Path) -> None:
    config = {"model_type": "t5", "is_encoder_decoder": True, "n_positions": 512, "vocab_size": 32128}

    summary = REHEARSAL.door.inspect(model_with(tmp_path, **config), 1)

    assert (summary.kind, summary.family, summary.vocab_size) == ("encoder_decoder", "t5", 32128)
    assert summary.length == Length(512, "n_positions of config.json")


# -- Choosing an engine for a model ------------------------------------------------------------------------------------


def engine_that_answers(name: str, answer: Callable[[], Any], **properties: Any) -> Engine:
    door: Any = SimpleNamespace(summarize=lambda model_dir: answer())
    return Engine(name, lambda: door, **properties)


def refuse(reason: str) -> Callable[[], Any]:
    def answer() -> Any:
        raise ModelError(reason)

    return answer


def test_the_first_engine_that_accepts_a_model_serves_it(tmp_path: Path) -> None:
    engines = (
        engine_that_answers("rehearsal", lambda: "anything", computes=False),
        engine_that_answers("one", refuse("no")),
        engine_that_answers("two", lambda: "a summary"),
    )

    assert find_engine(tmp_path, engines) == (engines[2], "a summary")


def test_the_reason_of_the_first_engine_is_given_when_none_serves_a_model(tmp_path: Path) -> None:
    engines = (engine_that_answers("one", refuse("config.json is missing")), engine_that_answers("two", refuse("no")))

    with pytest.raises(ModelError, match=r"config\.json is missing"):
        find_engine(tmp_path, engines)


def test_an_engine_without_tensor_parallelism_gets_one_shard() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1"}
    gpus = tuple(Gpu(str(index), "GPU", 1 << 30, 1 << 30) for index in range(2))
    decide = Decisions(load_config({}, environ), environ, machine(gpus=gpus))

    chosen = [choose_num_shard(decide, engine, "cuda") for engine in (NATIVE, replace(NATIVE, tensor_parallel=False))]

    assert chosen == [2, 1]
