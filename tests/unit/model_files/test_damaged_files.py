"""Damaged files of a model: every check reports the sentence with which startup would fail."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from in_process import run_in_process
from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_cli.model_files.cache.folder import CacheFolder
from tgis_cli.model_files.convert.to_safetensors import convert_to_safetensors
from tgis_cli.model_files.inventory import list_models
from tgis_cli.model_files.tokenizer_check import check_tokenizer, load_tokenizer
from tgis_server.engines.native.checkpoint.inspect import inspect_checkpoint
from tgis_server.engines.native.families import read_spec
from tgis_server.errors import ModelError
from tgis_server.frontend.text import Tokenizer, tokenizer
from tgis_server.model_files import parse_weight_map

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234567\n"
PAGE = "\n<!doctype html><title>502 Bad Gateway</title>"
LFS = "is a Git LFS pointer, not the file itself: run `git lfs pull` in "
HTML = "is a web page, probably sent by a proxy or a login service instead of the file"
ENVIRON = {"HOME": "/nowhere"}
DEMO_TOKENIZER = (DEMO_MODEL_DIR / "tokenizer.json").read_text()
CTC = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
DAMAGED_TOKENIZERS = {
    "pointer": (POINTER, LFS),
    "page": (PAGE, HTML),
    "cut": (DEMO_TOKENIZER[:900], "tokenizer.json cannot be read: EOF while parsing"),
    "cut at a bracket": (DEMO_TOKENIZER[: DEMO_TOKENIZER.index("}") + 1], "tokenizer.json cannot be read: "),
    "empty": ("", "tokenizer.json cannot be read: EOF while parsing"),
    "zeros": ("\0" * 900, "tokenizer.json cannot be read: expected value"),
    "no tokenizer": ("{}", " does not understand "),
    "refused decoder": (json.dumps(json.loads(DEMO_TOKENIZER) | {"decoder": CTC}), "The tokenizer decodes with CTC"),
}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return shutil.copytree(DEMO_MODEL_DIR, tmp_path / "model")


def sentence_of_a_start(model_dir: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(model_dir)
    return str(caught.value)


@pytest.mark.parametrize("kind", DAMAGED_TOKENIZERS)
def test_doctor_and_plan_report_a_damaged_tokenizer_as_a_start_does(model_dir: Path, kind: str):
    content, sentence = DAMAGED_TOKENIZERS[kind]
    (model_dir / "tokenizer.json").write_text(content)

    doctor = run_in_process("doctor", model_dir, "--json", environ=ENVIRON)
    plan = run_in_process("plan", model_dir, "--cpu", "8GiB", "--json", environ=ENVIRON)

    expected = sentence_of_a_start(model_dir)
    assert sentence in expected
    assert (doctor.returncode, plan.returncode) == (1, 3)
    verdicts = json.loads(doctor.stdout)["verdicts"]
    assert expected in [f"{verdict['sentence']} {verdict['fix']}".strip() for verdict in verdicts]
    assert json.loads(plan.stdout)["problem"] == expected


@pytest.mark.parametrize("kind", ["pointer", "page", "cut", "empty", "zeros"])
def test_a_quick_check_finds_what_is_not_json(model_dir: Path, kind: str):
    (model_dir / "tokenizer.json").write_text(DAMAGED_TOKENIZERS[kind][0])

    with pytest.raises(ModelError) as caught:
        check_tokenizer(model_dir)

    assert str(caught.value) == sentence_of_a_start(model_dir)


def test_a_quick_check_accepts_a_good_tokenizer_and_reports_a_missing_one(model_dir: Path, tmp_path: Path):
    check_tokenizer(model_dir)

    with pytest.raises(ModelError, match=r"No existing fast tokenizer \(tokenizer\.json\) found"):
        check_tokenizer(tmp_path)


def test_damaged_tokenizer_settings_are_found_too(model_dir: Path):
    (model_dir / "tokenizer_config.json").write_text('{"add_bos')

    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not valid JSON"):
        check_tokenizer(model_dir)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "holds a list, not an object"),
        ("5", "holds a int, not an object"),
        ("null", "holds a NoneType, not an object"),
        ("[" * 100_000, "is not valid JSON"),
        (POINTER, LFS),
        (PAGE, HTML),
    ],
)
def test_tokenizer_settings_are_read_like_any_json_of_the_model(model_dir: Path, content: str, sentence: str):
    (model_dir / "tokenizer_config.json").write_text(content)

    assert f"{model_dir / 'tokenizer_config.json'} {sentence}" in sentence_of_a_start(model_dir)


def test_doctor_and_plan_warn_of_a_bos_that_is_not_in_the_vocabulary(model_dir: Path):
    settings = {"add_bos_token": True, "bos_token": "<absent>"}
    (model_dir / "tokenizer_config.json").write_text(json.dumps(settings))

    doctor = run_in_process("doctor", model_dir, "--json", environ=ENVIRON)
    plan = run_in_process("plan", model_dir, "--json", environ=ENVIRON)

    expected = "tokenizer_config.json requests the BOS token <absent>, which is not in the vocabulary: it is left out."
    [verdict] = [one for one in json.loads(doctor.stdout)["verdicts"] if "BOS" in one["sentence"]]
    assert (verdict["level"], verdict["sentence"]) == ("warn", expected)
    assert expected in json.loads(plan.stdout)["warnings"]
    assert expected.encode() not in doctor.stderr + plan.stderr


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere", "it is a link to nothing"),
        (None, "it is a link that leads back to itself"),
        (".", "it is a directory, not a file"),
    ],
)
def test_links_and_directories_in_place_of_files_are_reported_as_such(
    model_dir: Path, name: str, target: str | None, sentence: str
):
    (model_dir / name).unlink(missing_ok=True)
    (model_dir / name).symlink_to(target or name)

    doctor = run_in_process("doctor", model_dir, "--json", environ=ENVIRON)

    failed = [one["sentence"] for one in json.loads(doctor.stdout)["verdicts"] if one["level"] == "fail"]
    assert any(f"{name} cannot be read ({sentence})" in one for one in failed)


def test_a_tokenizer_without_read_permission_does_not_suggest_a_download(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tokenizer, "read_regular", refuse)

    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read \(Permission denied\): check that it"):
        Tokenizer.load(model_dir, 1)


def test_a_panic_in_a_library_is_reported_as_an_error_of_the_file(model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    class PanicException(BaseException):
        """As raised by Rust libraries."""

    def panic(_: str) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("tokenizers.Tokenizer.from_buffer", panic)

    with pytest.raises(ModelError, match=r"does not understand .*tokenizer\.json \(index out of bounds\)"):
        Tokenizer.load(model_dir, 1)


@pytest.mark.parametrize(("content", "sentence"), [(POINTER, LFS), (PAGE, HTML)])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_stand_in_for_a_file_is_identified(model_dir: Path, name: str, content: str, sentence: str):
    (model_dir / name).write_text(content)

    with pytest.raises(ModelError) as caught:
        inspect_checkpoint(model_dir, read_spec(model_dir), 1)

    assert f"{model_dir / name} {sentence}" in str(caught.value)


@pytest.mark.parametrize(("content", "sentence"), [(POINTER, LFS), (PAGE, HTML)])
def test_a_stand_in_for_an_index_or_pytorch_weights_is_identified(tmp_path: Path, content: str, sentence: str):
    (tmp_path / "pytorch_model.bin").write_text(content)

    with pytest.raises(ModelError, match=sentence):
        convert_to_safetensors(tmp_path, as_json=False)
    with pytest.raises(ModelError, match=sentence):
        parse_weight_map(content, "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"is not a safetensors file \(it has 0 bytes\)"),
        (b"not a safetensors file", "is not a safetensors file .its first bytes are not the length of a header"),
        (bytes(900), r"is not a safetensors file \(its header cannot be read\)"),
        (b"\x40\0\0\0\0\0\0\0{", "has 9 bytes, but its header says 72: it was cut short; download it again"),
    ],
)
def test_only_truncated_weights_are_reported_as_cut_short(model_dir: Path, content: bytes, sentence: str):
    (model_dir / "model.safetensors").write_bytes(content)

    with pytest.raises(ModelError, match=sentence):
        inspect_checkpoint(model_dir, read_spec(model_dir), 1)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_cached_model_with_a_stand_in_is_incomplete_and_not_bundled(tmp_path: Path, model_dir: Path, name: str):
    folder = CacheFolder(tmp_path / "cache", "org/demo")
    (model_dir / name).write_text(POINTER)
    shutil.copytree(model_dir, folder.snapshot("c" * 40))
    folder.write_ref("main", "c" * 40)

    (listed,) = list_models(tmp_path / "cache")
    bundled = run_in_process("bundle", model_dir, tmp_path / "bundle", environ=ENVIRON)

    assert [LFS in problem for problem in listed.problems] == [True]
    assert (bundled.returncode, LFS in bundled.stderr.decode()) == (3, True)
