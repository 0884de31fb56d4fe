"""Listing the models in a cache, and removing them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import in_process
from in_process import run_in_process
from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_cli.model_files.cache.folder import CacheFolder
from tgis_cli.model_files.cache.listing import Listing, RemoteFile
from tgis_cli.model_files.cache.removal import prepare_removal, remove
from tgis_cli.model_files.inventory import CachedModel, list_models
from tgis_server.errors import ModelError, UsageError

MODEL = "org/demo"
OLD, NEW = "a" * 40, "b" * 40
WEIGHTS = "model.safetensors"


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fill(cache: Path, contents: dict[str, bytes], commit: str = NEW, revision: str = "main") -> CacheFolder:
    """A snapshot as a download leaves it."""
    folder = CacheFolder(cache, MODEL)
    folder.blobs.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in contents.items():
        file = RemoteFile(name, len(content), digest_of(content))
        folder.blob(file).write_bytes(content)
        folder.place(file, commit)
        files.append(file)
    folder.write_listing(Listing(MODEL, commit, tuple(files)))
    folder.write_ref(revision, commit)
    return folder


def demo_contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in DEMO_MODEL_DIR.iterdir() if path.is_file()}


def the_only(cache: Path) -> CachedModel:
    (found,) = list_models(cache)
    return found


def test_a_complete_model_is_listed_with_its_engine(tmp_path: Path):
    contents = demo_contents()
    fill(tmp_path, contents)

    model = the_only(tmp_path)

    assert (model.model, model.commit, model.revisions) == (MODEL, NEW, ("main",))
    assert (model.format, model.engine, model.problems) == ("safetensors", "native", ())
    assert model.architecture == json.loads(contents["config.json"])["architectures"][0]
    assert model.num_bytes == sum(map(len, contents.values()))
    assert model.last_used > 0


def test_an_architecture_without_an_engine_is_listed_with_the_reason(tmp_path: Path):
    fill(tmp_path, demo_contents() | {"config.json": b'{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}'})

    model = the_only(tmp_path)

    assert (model.engine, model.architecture, model.is_complete) == ("", "MambaForCausalLM", True)
    assert "architecture MambaForCausalLM has no native engine" in model.why_no_engine


def test_a_dangling_link_is_a_problem(tmp_path: Path):
    folder = fill(tmp_path, demo_contents())
    (folder.snapshot(NEW) / WEIGHTS).resolve().unlink()

    assert the_only(tmp_path).problems[0].startswith(f"{WEIGHTS} is a dangling link; `tgis download-weights")


def test_a_file_in_the_listing_but_not_in_the_snapshot_is_a_problem(tmp_path: Path):
    folder = fill(tmp_path, demo_contents())
    (folder.snapshot(NEW) / "tokenizer.json").unlink()

    assert the_only(tmp_path).problems[0].startswith("tokenizer.json is missing")


def test_a_truncated_weight_file_is_a_problem_even_without_a_listing(tmp_path: Path):
    folder = fill(tmp_path, demo_contents())
    (folder.root / "trees" / f"{NEW}.json").unlink()
    blob = (folder.snapshot(NEW) / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])

    assert WEIGHTS in the_only(tmp_path).problems[0]


def test_a_missing_shard_named_by_the_index_is_a_problem_even_without_a_listing(tmp_path: Path):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    shard = struct.pack("<Q", len(header)) + header + b"x"
    contents = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": shard}
    folder = fill(tmp_path, contents)
    (folder.root / "trees" / f"{NEW}.json").unlink()

    problem = "lacks 1 of 2 weight files that model.safetensors.index.json names (such as model-2.safetensors)"
    assert problem in the_only(tmp_path).problems[0]


def test_a_download_that_has_just_begun_is_listed_as_partial(tmp_path: Path):
    folder = CacheFolder(tmp_path, MODEL)
    folder.blobs.mkdir(parents=True, exist_ok=True)
    (folder.blobs / "abc.incomplete").write_bytes(b"12345")

    model = the_only(tmp_path)

    assert (model.num_bytes, model.problems[0][:32]) == (5, "only a part has been downloaded;")


def test_converted_weights_replace_the_originals(tmp_path: Path):
    contents = demo_contents()
    weights = contents.pop(WEIGHTS)
    folder = fill(tmp_path, contents | {"pytorch_model.bin": b"pickle"})
    (folder.snapshot(NEW) / WEIGHTS).write_bytes(weights)
    (folder.snapshot(NEW) / "pytorch_model.bin").unlink()

    assert the_only(tmp_path).problems == ()


def test_shards_with_an_index_replace_the_single_file_of_a_download(tmp_path: Path):
    contents = demo_contents()
    index = json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}).encode()
    shards = {"model-00001-of-00001.safetensors": contents[WEIGHTS], "model.safetensors.index.json": index}
    folder = fill(tmp_path, contents | shards)
    (folder.snapshot(NEW) / WEIGHTS).unlink()

    assert the_only(tmp_path).problems == ()


def test_a_consolidated_file_does_not_replace_the_single_file_of_a_download(tmp_path: Path):
    contents = demo_contents()
    folder = fill(tmp_path, contents | {"consolidated.safetensors": contents[WEIGHTS]})
    (folder.snapshot(NEW) / WEIGHTS).unlink()

    assert the_only(tmp_path).problems[0].startswith(f"{WEIGHTS} is missing")


def test_a_missing_cache_has_no_models(tmp_path: Path):
    assert list_models(tmp_path / "nowhere") == []


def test_an_unreadable_cache_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match=r"file cannot be read \(Not a directory\)"):
        list_models(tmp_path / "file")


def test_an_unreadable_listing_is_ignored(tmp_path: Path):
    folder = fill(tmp_path, demo_contents())
    folder.write_file(folder.root / "trees" / f"{NEW}.json", '{"format_version": 99}')

    assert the_only(tmp_path).problems == ()


# -- Removal ----------------------------------------------------------------------------------------------------------


def test_removing_a_model_removes_its_folder(tmp_path: Path):
    fill(tmp_path, demo_contents())

    removal = prepare_removal(tmp_path, MODEL, None)
    remove(removal)

    assert removal.num_bytes >= sum(map(len, demo_contents().values()))
    assert list(tmp_path.iterdir()) == []


def test_removing_a_revision_keeps_the_blobs_of_others(tmp_path: Path):
    contents = demo_contents()
    fill(tmp_path, contents | {"config.json": b"old"}, OLD, "v1")
    folder = fill(tmp_path, contents)

    removal = prepare_removal(tmp_path, MODEL, "v1")
    remove(removal)

    assert removal.num_bytes == 3
    assert not folder.snapshot(OLD).exists()
    assert not (folder.root / "refs/v1").exists()
    assert {path.name: path.read_bytes() for path in folder.snapshot(NEW).iterdir()} == contents
    assert len(list(folder.blobs.iterdir())) == len(contents)


def test_removing_the_last_revision_removes_the_folder(tmp_path: Path):
    fill(tmp_path, demo_contents())

    remove(prepare_removal(tmp_path, MODEL, "main"))

    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_removal_go_with_the_next_one(tmp_path: Path):
    (tmp_path / ".removed-123").mkdir()
    fill(tmp_path, demo_contents())

    remove(prepare_removal(tmp_path, MODEL, None))

    assert list(tmp_path.iterdir()) == []


def test_blobs_that_another_revision_uses_by_now_stay(tmp_path: Path):
    contents = demo_contents()
    fill(tmp_path, contents | {"config.json": b"old"}, OLD, "v1")
    fill(tmp_path, {"config.json": b"other"}, "d" * 40, "v2")
    removal = prepare_removal(tmp_path, MODEL, "v1")

    folder = fill(tmp_path, contents)
    remove(removal)

    assert {path.name: path.read_bytes() for path in folder.snapshot(NEW).iterdir()} == contents


def test_nothing_is_removed_while_another_process_converts(tmp_path: Path):
    folder = fill(tmp_path, demo_contents())
    program = "import sys, fcntl, os; fcntl.flock(os.open(sys.argv[1], 0), 2); print(1, flush=True); input()"
    command = [sys.executable, "-c", program, folder.snapshot(NEW)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as converting:
        converting.stdout.readline()

        with pytest.raises(UsageError, match="is being downloaded or converted by another process"):
            remove(prepare_removal(tmp_path, MODEL, None))
        converting.communicate(b"\n")

    assert the_only(tmp_path).is_complete


def test_only_unlinked_blobs_are_removed(tmp_path: Path):
    contents = demo_contents()
    fill(tmp_path / "cache", contents, OLD, "v1")
    folder = fill(tmp_path / "cache", {"config.json": b"new"})
    (tmp_path / "precious").write_bytes(b"mine")
    (folder.snapshot(OLD) / "link").symlink_to(tmp_path / "precious")
    weights = (folder.snapshot(OLD) / WEIGHTS).resolve()
    (folder.snapshot(NEW) / "onnx").mkdir()
    (folder.snapshot(NEW) / "onnx/model").symlink_to(f"../../../blobs/{weights.name}")

    remove(prepare_removal(tmp_path / "cache", MODEL, "v1"))

    assert (tmp_path / "precious").exists()
    assert (folder.snapshot(NEW) / "onnx/model").read_bytes() == contents[WEIGHTS]
    assert len(list(folder.blobs.iterdir())) == 2


def test_revisions_added_since_the_removal_was_prepared_stay(tmp_path: Path):
    folder = fill(tmp_path, demo_contents(), OLD, "v1")
    planned = prepare_removal(tmp_path, MODEL, "v1")
    assert planned.is_whole
    fill(tmp_path, demo_contents())

    remove(planned)

    assert [path.name for path in (folder.root / "snapshots").iterdir()] == [NEW]
    assert the_only(tmp_path).problems == ()


def test_a_branch_without_a_commit_is_listed_as_incomplete(tmp_path: Path):
    folder = fill(tmp_path, demo_contents())
    (folder.root / "refs/odd").write_bytes(b"\xff\xfe")

    assert [model.is_complete for model in list_models(tmp_path)] == [True, False]


def test_a_snapshot_that_is_itself_a_link_gets_working_links(tmp_path: Path):
    folder = fill(tmp_path / "cache", demo_contents())
    folder.snapshot(NEW).rename(tmp_path / "elsewhere")
    folder.snapshot(NEW).symlink_to(tmp_path / "elsewhere")

    for path in (tmp_path / "elsewhere").iterdir():
        path.unlink()
    fill(tmp_path / "cache", demo_contents())

    assert (folder.snapshot(NEW) / WEIGHTS).read_bytes() == demo_contents()[WEIGHTS]


def test_a_listing_without_sizes_is_rewritten(tmp_path: Path):
    folder = fill(tmp_path, demo_contents())
    tree = folder.root / "trees" / f"{NEW}.json"
    whole = tree.read_text()
    entries = json.loads(whole)
    entries["files"]["config.json"] = {"size": 0, "blob_id": ""}
    tree.write_text(json.dumps(entries))

    fill(tmp_path, demo_contents())

    assert tree.read_text() == whole


def test_a_truncated_file_is_restored_from_its_blob(tmp_path: Path):
    contents = demo_contents()
    folder = fill(tmp_path, contents)
    pointer = folder.snapshot(NEW) / WEIGHTS
    pointer.unlink()
    pointer.write_bytes(contents[WEIGHTS][:1000])

    fill(tmp_path, contents)

    assert pointer.read_bytes() == contents[WEIGHTS]


def test_content_outside_the_folder_is_moved_in(tmp_path: Path):
    contents = demo_contents()
    folder = fill(tmp_path / "cache", contents)
    pointer = folder.snapshot(NEW) / WEIGHTS
    file = RemoteFile(WEIGHTS, len(contents[WEIGHTS]), digest_of(contents[WEIGHTS]))
    folder.blob(file).rename(tmp_path / "elsewhere")
    pointer.unlink()
    pointer.symlink_to(tmp_path / "elsewhere")

    folder.place(file, NEW)
    (tmp_path / "elsewhere").unlink()

    assert pointer.read_bytes() == contents[WEIGHTS]


def test_files_are_copied_if_the_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    contents = demo_contents() | {"added_tokens.json": b"{}", "special_tokens_map.json": b"{}"}

    folder = fill(tmp_path, contents)

    assert {path.name: path.read_bytes() for path in folder.snapshot(NEW).iterdir()} == contents
    assert the_only(tmp_path).problems == ()


def test_an_interrupted_conversion_is_a_problem(tmp_path: Path):
    contents = demo_contents()
    weights = contents.pop(WEIGHTS)
    index = json.dumps({"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}).encode()
    parts = {"pytorch_model-1.bin": b"1", "pytorch_model-2.bin": b"2", "pytorch_model.bin.index.json": index}
    folder = fill(tmp_path, contents | parts)
    (folder.snapshot(NEW) / "model-1.safetensors").write_bytes(weights)

    assert the_only(tmp_path).problems == (
        f"its conversion was interrupted; `tgis convert-to-safetensors {MODEL}` completes it",
    )


def test_pending_conversions_are_problems(tmp_path: Path):
    contents = demo_contents()
    contents["pytorch_model.bin"] = contents.pop(WEIGHTS)
    contents["vocab.json"] = contents.pop("tokenizer.json")
    fill(tmp_path, contents)

    assert the_only(tmp_path).problems == (
        f"its weights are in PyTorch's format; `tgis convert-to-safetensors {MODEL}` converts them",
        f"tokenizer.json is missing; `tgis convert-to-fast-tokenizer {MODEL}` makes it",
    )


def test_a_repository_without_a_configuration_does_not_suggest_another_download(tmp_path: Path):
    contents = demo_contents()
    del contents["config.json"]
    fill(tmp_path, contents)

    assert the_only(tmp_path).problems == ("its repository has no config.json",)


@pytest.mark.parametrize(("answer", "is_removed"), [("y\n", True), ("n\n", False), ("", False)])
def test_only_yes_confirms_a_removal(answer: str, is_removed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    folder = fill(tmp_path, demo_contents())
    monkeypatch.setattr(in_process.io, "StringIO", lambda: Terminal(answer))

    result = run_rm(tmp_path)

    assert (result.returncode, folder.root.exists()) == (0 if is_removed else 1, not is_removed)
    assert (b"nothing was removed" in result.stdout) is not is_removed


def test_a_model_with_an_invalid_config_is_still_listed(tmp_path: Path):
    fill(tmp_path, demo_contents() | {"config.json": b'{"architectures": 5}'})

    assert "5" in the_only(tmp_path).why_no_engine or the_only(tmp_path).problems


@pytest.mark.parametrize(
    ("model", "revision", "sentence"),
    [
        ("org/none", None, "org/none is not in the cache"),
        (MODEL, "v9", f"{MODEL} has no revision v9 in the cache; its branches and tags there: main"),
        (MODEL, "..", f"{MODEL} has no revision"),
        (MODEL, "../..", f"{MODEL} has no revision"),
    ],
)
def test_missing_models_and_revisions_cannot_be_removed(
    model: str, revision: str | None, sentence: str, tmp_path: Path
):
    fill(tmp_path, demo_contents())

    with pytest.raises(ModelError, match=sentence):
        prepare_removal(tmp_path, model, revision)


def run_rm(cache: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return run_in_process("models", "rm", MODEL, *arguments, environ={"HF_HUB_CACHE": str(cache)})


def test_the_command_needs_a_terminal_or_yes(tmp_path: Path):
    folder = fill(tmp_path, demo_contents())

    dry, unsure, script = run_rm(tmp_path, "--dry-run"), run_rm(tmp_path), run_rm(tmp_path, "--json")
    is_there = folder.root.exists()
    sure = run_rm(tmp_path, "--yes")

    assert (dry.returncode, unsure.returncode, script.returncode, is_there) == (0, 2, 2, True)
    assert b"use --yes (or --dry-run)" in unsure.stderr
    assert (sure.returncode, folder.root.exists()) == (0, False)
