"""Exporting to ONNX: installing the exporter, its input, and its result.

The exporter is a stand-in, unless TGIS_ONNX_EXPORTER names a directory with the real one.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from tgis_cli.model_files.convert import onnx
from tgis_cli.model_files.convert.onnx import (
    PACKAGES,
    STAMP,
    Export,
    export_to_onnx,
    find_environment,
    prepare_environment,
)
from tgis_cli.model_files.convert.onnx_worker import lay_out_model
from tgis_server.errors import ModelError, NotEnoughDevices, TgisError, UsageError

TGIS = Path(sys.executable).parent / "tgis"
STAND_IN = """
import os, signal
from types import SimpleNamespace

def main_export(source, target, **options):
    exec(os.environ.get("STAND_IN_FAILS", ""))
    target.mkdir()
    for name in ("model.onnx", "config.json"):
        (target / name).write_text(name)

class Model:
    def __init__(self, logit):
        self.logit = logit
    def __call__(self, input_ids, attention_mask):
        import torch
        return SimpleNamespace(logits=torch.full((1, input_ids.shape[1], 3), self.logit))
    def eval(self):
        return self

class AutoConfig:
    from_pretrained = staticmethod(lambda path: SimpleNamespace(is_encoder_decoder=False))

class AutoModelForCausalLM:
    from_pretrained = staticmethod(lambda path, dtype: Model(2.0))

class ORTModelForCausalLM:
    from_pretrained = staticmethod(lambda path, provider: Model(float(os.environ.get("STAND_IN_LOGIT", 2))))

AutoOptimizationConfig = ORTOptimizer = ORTModelForSeq2SeqLM = AutoModelForSeq2SeqLM = None
"""


BASE = {"vocab_size": 211, "hidden_size": 64, "num_hidden_layers": 2}
LLAMA = {"num_attention_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
T5 = {"num_heads": 4, "d_kv": 16, "num_decoder_layers": 2}


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exporter that needs no installation. Our own transformers is not used as the reference."""
    environment = tmp_path / "exporter"
    for package in ("optimum/exporters/onnx", "optimum/onnxruntime", "transformers"):
        (environment / package).mkdir(parents=True)
        (environment / package / "__init__.py").write_text(STAND_IN)
    (environment / STAMP).write_text(json.dumps({"packages": PACKAGES, "python": sys.version_info[:2]}))
    monkeypatch.setattr(onnx, "has_transformers", lambda: False)
    return environment


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (directory / name).write_text("{}")
    return directory


def export(model: Path, target: Path, exporter: Path) -> float:
    return export_to_onnx(Export(model, target, merge_graphs=False, optimize=False, provider=None), exporter)


# -- What is exported -------------------------------------------------------------------------------------------------


def test_an_export_has_the_model_and_the_tokenizer(model: Path, exporter: Path, tmp_path: Path):
    target = tmp_path / "new" / "target"

    difference = export(model, target, exporter)

    assert difference == 0
    assert {path.name for path in target.iterdir()} == {"model.onnx", "config.json", "tokenizer.json"}
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"),
    [
        ("FAILS", "raise ValueError('no such graph')", ModelError, r"cannot be exported \(no such graph\)"),
        ("FAILS", "raise OSError(28, 'No space left')", NotEnoughDevices, "No space is left in"),
        (
            "FAILS",
            "os.kill(os.getpid(), signal.SIGKILL)",
            NotEnoughDevices,
            "killed by SIGKILL, probably because memory",
        ),
        ("FAILS", "os._exit(7)", ModelError, r"cannot be exported \(exit code 7\)"),
        ("LOGIT", "2.1", ModelError, "logits differ by 0.1 from the expected ones"),
        ("LOGIT", "nan", ModelError, "logits differ by nan"),
    ],
)
def test_a_failed_export_leaves_nothing_behind(
    name: str,
    value: str,
    kind: type[TgisError],
    words: str,
    model: Path,
    exporter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(f"STAND_IN_{name}", value)

    with pytest.raises(kind, match=words):
        export(model, tmp_path / "target", exporter)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["exporter", "model"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"rope_theta": 1e4}, {"rope_theta": 1e4}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
        (
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "factor": 2.0,
                    "rope_theta": 1e6,
                    "partial_rotary_factor": 0.5,
                }
            },
            {
                "rope_theta": 1e6,
                "partial_rotary_factor": 0.5,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
        ),
    ],
)
def test_the_config_is_rewritten_for_the_older_transformers(
    written: dict[str, object], read: dict[str, object], model: Path, tmp_path: Path
):
    (model / "config.json").write_text(json.dumps(written))

    lay_out_model(model, tmp_path / "source")

    assert json.loads((tmp_path / "source/config.json").read_text()) == read
    assert (tmp_path / "source/model.safetensors").resolve() == model / "model.safetensors"


def test_rope_parameters_that_differ_by_layer_are_refused(model: Path, tmp_path: Path):
    (model / "config.json").write_text('{"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}')

    with pytest.raises(ValueError, match="differ by layer"):
        lay_out_model(model, tmp_path / "source")


def test_a_target_that_is_not_empty_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match="exists and is not empty"):
        Export(tmp_path, tmp_path, False, False, None).check()


def test_a_provider_must_be_known(tmp_path: Path):
    with pytest.raises(UsageError, match="--provider GPU is unknown; choose one of CPUExecutionProvider, CUDA"):
        Export(tmp_path, tmp_path / "t", False, False, "GPU").check()


@pytest.mark.skipif("TGIS_ONNX_EXPORTER" not in os.environ, reason="needs the exporter, which is hundreds of MiB")
@pytest.mark.parametrize(
    ("model_type", "sizes", "options"),
    [
        ("llama", LLAMA, ()),
        ("llama", LLAMA, ("--optimize",)),
        ("gpt2", {"n_head": 4}, ("--optimize", "--provider", "CUDAExecutionProvider")),
        ("t5", T5, ()),
        ("t5", T5, ("--merge-graphs", "--optimize")),
    ],
)
def test_a_real_export_has_the_same_logits(
    model_type: str, sizes: dict[str, object], options: tuple[str, ...], tmp_path: Path
):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(model_type, **BASE, **sizes)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(tmp_path / "model")
    command = [TGIS, "convert-to-onnx", tmp_path / "model", tmp_path / "target", *options]

    result = subprocess.run(
        [*command, "--environment", os.environ["TGIS_ONNX_EXPORTER"]], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'target'}\n"), result.stderr
    assert list((tmp_path / "target").glob("*.onnx"))
    assert float(result.stderr.split("differ by ")[1].split(" ")[0]) < 1e-3


# -- Where the exporter lives -----------------------------------------------------------------------------------------


def test_the_exporter_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = []

    def install(directory: Path, environment: Path) -> None:
        made.append(environment)
        (directory / "optimum").mkdir(parents=True)

    monkeypatch.setattr(onnx, "install", install)
    for _ in range(2):
        prepare_environment(tmp_path / "exporter")

    assert made == [tmp_path / "exporter"]
    assert [path.name for path in tmp_path.iterdir()] == ["exporter"]


def test_an_exporter_of_another_version_is_replaced(exporter: Path, monkeypatch: pytest.MonkeyPatch):
    (exporter / STAMP).write_text('{"packages": []}')
    monkeypatch.setattr(onnx, "install", lambda directory, _: directory.mkdir())

    prepare_environment(exporter)

    assert [path.name for path in exporter.iterdir()] == [STAMP]


def test_leftovers_of_a_killed_installation_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".exporter.incomplete/half").mkdir(parents=True)
    monkeypatch.setattr(onnx, "install", lambda directory, _: directory.mkdir())

    prepare_environment(tmp_path / "exporter")

    assert [path.name for path in tmp_path.rglob("*")] == ["exporter", STAMP]


def test_a_directory_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match="is in use for something other than the exporter"):
        prepare_environment(tmp_path)


def test_a_failed_installation_is_explained_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(
        ModelError, match=r"No matching distribution found for .*\): check the network, set PIP_INDEX_URL"
    ):
        prepare_environment(tmp_path / "exporter")

    assert list(tmp_path.iterdir()) == []


def test_the_exporter_is_in_the_users_cache_directory():
    assert find_environment({"HOME": "/home/u"}) == Path("/home/u/.cache/tgis/onnx-exporter")
    assert find_environment({"HOME": "/home/u", "XDG_CACHE_HOME": "/c"}) == Path("/c/tgis/onnx-exporter")
    assert find_environment({"HOME": "/home/u", "XDG_CACHE_HOME": "$HOME/c"}) == Path("/home/u/c/tgis/onnx-exporter")
    assert find_environment({"HOME": "/home/u", "XDG_CACHE_HOME": "c"}) == Path("/home/u/.cache/tgis/onnx-exporter")


def test_a_user_without_a_home_must_name_an_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)

    with pytest.raises(UsageError, match=r"HOME is not set, and user .* Name one with --environment"):
        find_environment({})
