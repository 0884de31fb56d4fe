"""Bundles: models packed completely, verified, and unpacked unchanged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from file_limit import with_file_limit
from in_process import run_in_process
from test_cached_models import MODEL, NEW, WEIGHTS, demo_contents, fill
from tgis_cli.model_files import DEMO_MODEL_DIR

TGIS = Path(sys.executable).parent / "tgis"


def run_tgis(
    *arguments: str | Path, cache: Path, max_file_bytes: int = 0, **options: object
) -> subprocess.CompletedProcess[bytes]:
    environ = {"HF_HUB_CACHE": str(cache), "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    is_stream = "-" in arguments  # needs a real pipe
    if not options and not max_file_bytes and not is_stream and arguments[0] != "download-weights":
        return run_in_process(*arguments, environ=environ)
    command = [TGIS, *arguments]
    if max_file_bytes:
        command = with_file_limit(command, max_file_bytes)
    return subprocess.run(command, env=environ, capture_output=True, timeout=30, check=False, **options)


def contents_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the demo model in it."""
    directory = tmp_path_factory.mktemp("cache")
    fill(directory, demo_contents())
    return directory


@pytest.fixture(scope="module")
def packed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundle") / "demo"
    result = run_tgis("bundle", MODEL, target, cache=cache)
    assert result.returncode == 0, result.stderr
    return target


def test_a_bundle_consists_of_plain_files_that_sha256sum_can_check(packed: Path):
    result = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=packed, check=False)

    assert result.returncode == 0
    assert not any(path.is_symlink() for path in packed.iterdir())
    assert contents_of(packed).keys() == demo_contents().keys() | {"bundle.json", "SHA256SUMS"}


def test_a_bundle_can_be_used_as_a_model_directory(packed: Path, tmp_path: Path):
    result = run_tgis("tokenize", "--model", packed, "Once", cache=tmp_path)

    assert result.returncode == 0


def test_a_bundle_becomes_the_same_revision_in_another_cache(packed: Path, tmp_path: Path):
    result = run_tgis("unbundle", packed, cache=tmp_path)
    found = run_tgis("download-weights", MODEL, "--verify", cache=tmp_path)

    root = tmp_path / "models--org--demo"
    assert result.stdout.decode() == f"{root / 'snapshots' / NEW}\n"
    assert contents_of(root / "snapshots" / NEW) == demo_contents()
    assert (root / "refs/main").read_text() == NEW
    assert b"5 files: none damaged" in found.stderr, found.stderr


def test_a_bundle_can_be_streamed_without_a_file_in_between(cache: Path, tmp_path: Path):
    stream = run_tgis("bundle", MODEL, "-", cache=cache).stdout
    result = run_tgis("unbundle", "-", cache=tmp_path, input=stream)

    assert result.returncode == 0, result.stderr
    assert contents_of(tmp_path / "models--org--demo/snapshots" / NEW) == demo_contents()


def test_tar_files_of_the_same_model_are_identical(cache: Path, tmp_path: Path):
    for name in ("a.tar", "b.tar"):
        assert run_tgis("bundle", MODEL, tmp_path / name, cache=cache).returncode == 0

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_bundle_of_a_directory_needs_a_name_when_it_is_unpacked(tmp_path: Path):
    model_dir = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "model")

    assert run_tgis("bundle", model_dir, tmp_path / "b.tar", cache=tmp_path / "cache").returncode == 0
    unnamed = run_tgis("unbundle", tmp_path / "b.tar", cache=tmp_path / "cache")
    named = run_tgis("unbundle", tmp_path / "b.tar", "--name", "my/model", cache=tmp_path / "cache")
    to = run_tgis("unbundle", tmp_path / "b.tar", "--to", tmp_path / "out", cache=tmp_path / "cache")

    assert (unnamed.returncode, named.returncode, to.returncode) == (2, 0, 0)
    assert b"was made from a directory: give --name org/model, or --to DIR" in unnamed.stderr
    assert contents_of(tmp_path / "out") == demo_contents()
    assert contents_of(Path(named.stdout.decode().strip())) == demo_contents()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "SHA256SUMS", "bundle.json"])
def test_a_damaged_bundle_is_refused_and_leaves_nothing_behind(name: str, packed: Path, tmp_path: Path):
    bundle = shutil.copytree(packed, tmp_path / "bundle")
    (bundle / name).write_bytes((packed / name).read_bytes()[:-2] + b"?")

    result = run_tgis("unbundle", bundle, cache=tmp_path / "cache")
    to = run_tgis("unbundle", bundle, "--to", tmp_path / "out", cache=tmp_path / "cache")

    assert (result.returncode, to.returncode) == (3, 3)
    assert b"copy the bundle again" in result.stderr or b"is not a tgis bundle" in result.stderr
    assert not any((tmp_path / "cache").rglob("snapshots"))
    assert not any(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"] + ["cache"] * (tmp_path / "cache").exists()


def test_a_missing_file_is_named(packed: Path, tmp_path: Path):
    bundle = shutil.copytree(packed, tmp_path / "bundle")
    (bundle / WEIGHTS).unlink()

    result = run_tgis("unbundle", bundle, cache=tmp_path / "cache")

    assert (result.returncode, f"{bundle / WEIGHTS} cannot be opened" in result.stderr.decode()) == (3, True)


@pytest.mark.parametrize("name", ["config.json", "bundle.json"])
@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", ""], ids=["device", "link", "pipe"])
def test_a_bundle_with_anything_but_regular_files_is_refused(target: str, name: str, packed: Path, tmp_path: Path):
    bundle = shutil.copytree(packed, tmp_path / "bundle")
    (bundle / name).unlink()
    (bundle / name).symlink_to(target) if target else os.mkfifo(bundle / name)

    result = run_tgis("unbundle", bundle, cache=tmp_path / "cache")

    assert (result.returncode, name.encode() in result.stderr) == (3, True)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_tar_header_is_refused(kind: bytes, tmp_path: Path):
    entry = tarfile.TarInfo("header")
    entry.type, entry.size = kind, 1 << 30
    (tmp_path / "b.tar").write_bytes(entry.tobuf())

    result = run_tgis("unbundle", tmp_path / "b.tar", cache=tmp_path / "cache")

    assert (result.returncode, b"a header of 1073741824 bytes" in result.stderr) == (3, True)


@pytest.mark.parametrize("size", [0, 100, 600, 20_000, -1])
def test_a_tar_that_ends_early_is_refused(size: int, cache: Path, tmp_path: Path):
    assert run_tgis("bundle", MODEL, tmp_path / "b.tar", cache=cache).returncode == 0
    whole = (tmp_path / "b.tar").read_bytes().rstrip(b"\0")  # without the optional blocks of zeros at the end
    (tmp_path / "b.tar").write_bytes(whole[:size])

    result = run_tgis("unbundle", tmp_path / "b.tar", cache=tmp_path / "cache")

    assert result.returncode == 3, result.stderr
    assert b"tgis: " in result.stderr
    assert not any(tmp_path.rglob("snapshots"))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (["bundle", MODEL, "TMP/taken"], 2, "already exists"),
        (["bundle", "org/none", "TMP/x"], 3, "org/none not found"),
        (["bundle", MODEL, "TMP/none/x"], 2, "none cannot be written (No such file or directory)"),
        (["bundle", MODEL, ""], 2, "The bundle's name is empty"),
        (["bundle", "", "TMP/x"], 2, "The model's name is empty"),
        (["unbundle", "TMP/none"], 2, "cannot be read (No such file"),
        (["unbundle", "TMP/none.tar.gz"], 2, "is compressed: unpack it first"),
        (["unbundle", "TMP/taken"], 3, "is not a tgis bundle"),
        (["unbundle", "TMP/taken/file"], 3, "is not a complete tar file"),
    ],
)
def test_invalid_arguments_are_refused_in_one_sentence(
    arguments: list[str], exit_code: int, sentence: str, cache: Path, tmp_path: Path
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_bytes(b"x" * 2000)

    result = run_tgis(*(argument.replace("TMP", str(tmp_path)) for argument in arguments), cache=cache)

    assert (result.returncode, result.stderr.decode().count("\n")) == (exit_code, 1)
    assert sentence in result.stderr.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("target", ["b", "b.tar"])
def test_a_full_disk_leaves_nothing_behind(target: str, cache: Path, tmp_path: Path):
    result = run_tgis("bundle", MODEL, tmp_path / target, cache=cache, max_file_bytes=30_000)

    assert result.returncode == 4
    assert b"No space is left in" in result.stderr
    assert list(tmp_path.iterdir()) == []


def spoil_manifest(packed: Path, directory: Path, **changes: object) -> Path:
    """A copy of a bundle with changes in its manifest."""
    shutil.copytree(packed, directory)
    manifest = json.loads((packed / "bundle.json").read_text()) | changes
    (directory / "bundle.json").write_text(json.dumps(manifest))
    return directory


def one_file(**changes: object) -> dict[str, object]:
    return {"files": [{"name": "config.json", "size": 0, "digest": ""} | changes]}


@pytest.mark.parametrize(
    "changes",
    [
        *({"revisions": [revision]} for revision in ("../../../evil", "/tmp/evil", "a/../b", "")),
        *(one_file(name=name) for name in ("../evil", "a/b", "bundle.json")),
        one_file(digest="../evil"),
        one_file(size=-1),
        {"files": one_file()["files"] * 2},
    ],
)
def test_unsafe_paths_and_impossible_entries_are_refused(changes: dict[str, object], packed: Path, tmp_path: Path):
    bundle = spoil_manifest(packed, tmp_path / "bundle", **changes)

    result = run_tgis("unbundle", bundle, cache=tmp_path / "cache")

    assert (result.returncode, b"contains the invalid entry" in result.stderr) == (3, True)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "text", ['{"format": 1, "files": [{"name": "a", "digest": "", "size": 1e999}]}', "[" * 100_000]
)
def test_a_malformed_manifest_is_refused(text: str, packed: Path, tmp_path: Path):
    bundle = shutil.copytree(packed, tmp_path / "bundle")
    (bundle / "bundle.json").write_text(text)

    result = run_tgis("unbundle", bundle, cache=tmp_path / "cache")

    assert (result.returncode, b"is not a tgis bundle" in result.stderr) == (3, True)


def test_content_that_differs_from_the_hubs_digest_is_refused(packed: Path, tmp_path: Path):
    files = json.loads((packed / "bundle.json").read_text())["files"]
    files[0]["digest"] = "ab" * 32
    bundle = spoil_manifest(packed, tmp_path / "bundle", files=files)

    result = run_tgis("unbundle", bundle, cache=tmp_path / "cache")

    assert (result.returncode, b"is damaged in the bundle" in result.stderr) == (3, True)


def test_a_damaged_model_in_the_cache_is_not_packed(tmp_path: Path):
    folder = fill(tmp_path / "cache", demo_contents())
    blob = (folder.snapshot(NEW) / "tokenizer.json").resolve()
    blob.write_bytes(blob.read_bytes().replace(b"1.0", b"1.1", 1))

    result = run_tgis("bundle", MODEL, tmp_path / "out", cache=tmp_path / "cache")

    assert (result.returncode, b"tokenizer.json is damaged" in result.stderr) == (3, True)
    assert not (tmp_path / "out").exists()


def test_a_directory_with_truncated_weights_is_not_packed(tmp_path: Path):
    broken = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "broken")
    os.truncate(broken / WEIGHTS, 1000)

    result = run_tgis("bundle", broken, tmp_path / "out", cache=tmp_path)

    assert (result.returncode, b"is not complete" in result.stderr) == (3, True)


def test_a_bundle_of_an_old_commit_leaves_main_where_it_is(packed: Path, tmp_path: Path):
    fill(tmp_path / "cache", demo_contents() | {"README.md": b"newer"}, commit="c" * 40)
    bundle = spoil_manifest(packed, tmp_path / "bundle", revisions=[])

    assert run_tgis("unbundle", bundle, cache=tmp_path / "cache").returncode == 0

    root = tmp_path / "cache/models--org--demo"
    assert (root / "refs/main").read_text() == "c" * 40
    assert contents_of(root / "snapshots" / NEW) == demo_contents()


def test_two_bundles_at_once_do_not_interfere(cache: Path, tmp_path: Path):
    command = [TGIS, "bundle", MODEL, tmp_path / "b.tar"]
    environ = {"HF_HUB_CACHE": str(cache), "PATH": os.environ["PATH"]}
    both = [subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) for _ in range(2)]

    codes = sorted(process.wait(30) for process in both)

    assert codes in ([0, 2], [0, 0])
    assert run_tgis("unbundle", tmp_path / "b.tar", cache=tmp_path / "cache").returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_file_names_with_spaces_and_non_ascii_letters_are_kept(tmp_path: Path):
    contents = demo_contents() | {"notes (1),\u00e9@.json": b"{}"}
    fill(tmp_path / "cache", contents)

    assert run_tgis("bundle", MODEL, tmp_path / "out", cache=tmp_path / "cache").returncode == 0
    result = run_tgis("unbundle", tmp_path / "out", cache=tmp_path / "other")

    assert contents_of(Path(result.stdout.decode().strip())) == contents


def test_a_plain_directory_below_the_cache_can_be_bundled(tmp_path: Path):
    plain = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "plain")

    assert run_tgis("bundle", plain, tmp_path / "out", cache=tmp_path).returncode == 0
