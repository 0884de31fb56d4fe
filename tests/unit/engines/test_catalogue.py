"""The catalogue of engines: the only thing that others know of them, before anything is loaded."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from test_preflight import machine, make_run
from tgis_cli.decide.decisions import Decisions
from tgis_cli.decide.resolve import DEMO_MODEL_DIR
from tgis_cli.decide.resources import choose_num_shard
from tgis_cli.machine import Gpu
from tgis_cli.model_files.download.remote_headers import write_converted_header
from tgis_cli.supervisor.environment import child_environment
from tgis_server.engines.capabilities import RunnerCaps
from tgis_server.engines.catalogue import (
    ENGINES,
    NATIVE,
    REHEARSAL,
    Door,
    Engine,
    ModelSummary,
    find_engine,
    find_named,
    get_engine,
)
from tgis_server.engines.load import load_runner
from tgis_server.errors import ModelError, UsageError
from tgis_server.model_files import Length
from tgis_server.options import load_config
from tgis_server.run import Run
from tgis_server.threads import Threads

REPOSITORY = Path(__file__).resolve().parents[3]
DOORS = ("catalogue", "capabilities", "api", "load")
FLAGS = [field.name for field in fields(RunnerCaps) if field.type == "bool"]
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


# -- Who may know what -------------------------------------------------------------------------------------------------


def parse(directory: str) -> Iterator[tuple[Path, ast.AST]]:
    """Everything in all files below a directory, but for the engines themselves."""
    for file in sorted((REPOSITORY / directory).rglob("*.py")):
        if "engines" not in file.parts:
            for node in ast.walk(ast.parse(file.read_text())):
                yield file, node


def imported_engines(directory: str) -> set[str]:
    """Modules of the engines that files below a directory import, wherever in them."""
    found: set[str] = set()
    for _, node in parse(directory):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[2] for name in found if name.startswith("tgis_server.engines.")}


@pytest.mark.parametrize(("directory", "doors"), [("tgis_cli", DOORS[:1]), ("server", DOORS)])
def test_others_import_nothing_of_an_engine_but_its_door(directory: str, doors: tuple[str, ...]) -> None:
    assert imported_engines(directory) - {*doors} == set()


@pytest.mark.parametrize("directory", ["tgis_cli", "server"])
def test_nothing_outside_the_engines_names_one(directory: str) -> None:
    named = [(str(file), node.value) for file, node in parse(directory) if isinstance(node, ast.Constant)]

    assert [found for found in named if found[1] in ENGINES] == []


def test_help_the_catalogue_and_its_doors_need_no_torch() -> None:
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


# -- Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: get_engine(run.engine),
        lambda run: load_runner(run, 0, lambda *_: None),
        Threads.of,
        lambda run: child_environment(run, 0, {}),
    ],
)
def test_an_unknown_name_is_an_error_everywhere(ask: Callable[[Run], object]) -> None:
    with pytest.raises(UsageError, match=r"no engine 'natvie' in this version, only native and fake"):
        ask(make_run(Path(), engine="natvie", shard_threads=1))


@pytest.mark.parametrize(
    ("framework", "engine"), [(None, None), ("tgis_native", NATIVE), ("hf_custom_tp", NATIVE), ("ibm_fms", None)]
)
def test_frameworks_of_the_original_mean_engines(framework: str | None, engine: Engine | None) -> None:
    assert find_named(framework) is engine


# -- What each engine tells --------------------------------------------------------------------------------------------


def signature_of(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.annotation, p.default) for p in parameters if p.name != "self"]


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("question", [name for name in vars(Door) if not name.startswith("_")])
def test_every_engine_answers_at_its_door(engine: Engine, question: str) -> None:
    assert signature_of(getattr(engine.door, question)) == signature_of(getattr(Door, question))


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_engine_tells_what_the_demo_model_is(engine: Engine) -> None:
    summary = engine.door.inspect(DEMO_MODEL_DIR, 1)

    told = (summary.kind, summary.family, summary.vocab_size, summary.length, summary.end_ids, summary.dtype)
    expected_length = Length(2048, "max_position_embeddings of config.json")
    assert told == ("decoder", "llama", 1536, expected_length, (1,), "bfloat16")
    assert (summary.sizes is not None) == engine.computes


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_a_runner_can_no_more_than_the_catalogue_says(engine: Engine, tmp_path: Path) -> None:
    run = make_run(tmp_path, engine=engine.name, model_dir=DEMO_MODEL_DIR, num_shard=1, dtype="float32")

    runner = load_runner(run, 0, lambda *_: None)
    runner.close()

    can, most = runner.caps, engine.caps
    assert can.memory == most.memory
    assert can.adapters <= most.adapters
    assert [flag for flag in FLAGS if getattr(can, flag) > getattr(most, flag)] == []


def test_config_json_alone_tells_everything_but_sizes(tmp_path: Path) -> None:
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


def test_headers_tell_dtype_and_sizes_for_any_number_of_shards(tmp_path: Path) -> None:
    write_converted_header(model_with(tmp_path, **LLAMA))

    summary = NATIVE.door.inspect(tmp_path, 1)
    sizes = summary.sizes

    assert sizes is not None
    assert summary.dtype == "float32"
    assert [sizes.kv_bytes_per_token(0, num_shard, "float16") for num_shard in (1, 2, 4)] == [256, 128, 128]
    memory = sizes.rank_memory(make_run(tmp_path, num_shard=2, dtype="float32", device="cuda"), 1)
    assert memory.weight_bytes == sizes.weight_bytes(1, 2, "float32") < sizes.weight_bytes(0, 1, "float32")
    assert memory.kv_bytes_per_token == sizes.kv_bytes_per_token(1, 2, "float32")


@pytest.mark.parametrize("ask", [NATIVE.door.summarize, NATIVE.door.inspect])
def test_a_number_of_shards_that_does_not_divide_the_model_is_refused(ask: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1, 2, 4"):
        ask(model_with(tmp_path, **LLAMA), 3)


def test_a_rehearsal_takes_the_length_of_the_engine_that_it_stands_for(tmp_path: Path) -> None:
    model_with(tmp_path, **LLAMA, rope_scaling={"type": "linear", "factor": 2.0})

    summary = REHEARSAL.door.inspect(tmp_path, 3)

    assert (summary.length, summary.warnings) == (NATIVE.door.summarize(tmp_path).length, ())
    assert summary.length is not None
    assert summary.length.num_tokens == 1024


def test_a_rehearsal_serves_models_that_no_engine_knows(tmp_path: Path) -> None:
    config = {"model_type": "t5", "is_encoder_decoder": True, "n_positions": 512, "vocab_size": 32128}

    summary = REHEARSAL.door.inspect(model_with(tmp_path, **config), 1)

    assert (summary.kind, summary.family, summary.vocab_size) == ("encoder_decoder", "t5", 32128)
    assert summary.length == Length(512, "n_positions of config.json")


# -- Which engine serves a model ---------------------------------------------------------------------------------------


def engine_that_says(name: str, answer: Callable[[], Any], **can: Any) -> Engine:
    door: Any = SimpleNamespace(summarize=lambda model_dir: answer())
    return Engine(name, lambda: door, NATIVE.caps, **can)


def refuse(reason: str) -> Callable[[], Any]:
    def answer() -> Any:
        raise ModelError(reason)

    return answer


def test_the_first_engine_that_knows_a_model_serves_it(tmp_path: Path) -> None:
    engines = (
        engine_that_says("rehearsal", lambda: "anything", computes=False),
        engine_that_says("one", refuse("no")),
        engine_that_says("two", lambda: "a summary"),
    )

    assert find_engine(tmp_path, engines) == (engines[2], "a summary")


def test_a_model_that_no_engine_knows_gets_the_reason_of_the_first(tmp_path: Path) -> None:
    engines = (engine_that_says("one", refuse("config.json is missing")), engine_that_says("two", refuse("no")))

    with pytest.raises(ModelError, match=r"config\.json is missing"):
        find_engine(tmp_path, engines)


def test_an_engine_that_divides_no_models_gets_one_shard() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1"}
    gpus = tuple(Gpu(str(index), "GPU", 1 << 30, 1 << 30) for index in range(2))
    decide = Decisions(load_config({}, environ), environ, machine(gpus=gpus))

    chosen = [choose_num_shard(decide, engine, "cuda") for engine in (NATIVE, replace(NATIVE, tensor_parallel=False))]

    assert chosen == [2, 1]
