"""`tgis download-weights` against a hub with many kinds of faults."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from hub_stub import COMMIT, MODEL, Fault, HubStub, digest_of, serve_hub
from shards import wait_until

TGIS = Path(sys.executable).parent / "tgis"
WEIGHTS = "model.safetensors"
NUM_WEIGHT_BYTES = 3_000_000
NUM_KILLS = [2, pytest.param(int(os.environ.get("TGIS_KILL_RUNS", "40")), marks=pytest.mark.acceptance)]


def make_weights(num_bytes: int = NUM_WEIGHT_BYTES) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(0).randbytes(num_bytes)


FILES = {
    "config.json": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode(),
    "tokenizer.json": b"{}",
    "merges.txt": b"a b\n",
    "README.md": b"Tiny.\n",
    "training_args.bin": b"code",
    WEIGHTS: make_weights(),
}
TAKEN = {name: content for name, content in FILES.items() if name != "training_args.bin"}


@dataclass
class Download:
    """Runs the command against the stub, with a separate cache."""

    hub: HubStub
    cache: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.cache / "models--org--tiny"

    @property
    def snapshot(self) -> Path:
        return self.root / "snapshots" / COMMIT

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        places = {"HF_ENDPOINT": self.hub.url, "HF_HUB_CACHE": str(self.cache), "HOME": str(self.cache.parent)}
        return kept | places | self.environ

    def run(
        self, *arguments: str, model: str = MODEL, command: str = "download-weights"
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TGIS, command, model, *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [TGIS, "download-weights", MODEL, *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.snapshot.iterdir()} if self.snapshot.is_dir() else {}

    def leftovers(self) -> list[str]:
        return [path.name for path in self.root.rglob("*") if "incomplete" in path.name or path.name[:1] == "."]


@pytest.fixture
def download(tmp_path: Path) -> Iterator[Download]:
    with serve_hub(HubStub(dict(FILES))) as hub:
        yield Download(hub, tmp_path / "cache")


@pytest.fixture(scope="module")
def complete_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with serve_hub(HubStub(dict(FILES))) as hub:
        done = Download(hub, tmp_path_factory.mktemp("complete") / "cache")
        assert done.run().returncode == 0
    return done.cache


@pytest.fixture
def downloaded(download: Download, complete_cache: Path) -> Download:
    """A separate cache in which the model is complete."""
    shutil.copytree(complete_cache, download.cache, symlinks=True)
    return download


def assert_complete(download: Download) -> None:
    assert download.contents() == TAKEN
    assert (download.root / "refs/main").read_text() == COMMIT
    assert download.leftovers() == []


def assert_final_names_are_whole(download: Download) -> None:
    """Even after an interruption, everything under a final name is complete."""
    known = set(map(digest_of, FILES.values()))
    for path in (download.root / "blobs").glob("*"):
        if "incomplete" not in path.name and not path.name.startswith("."):
            assert path.name in known
            assert path.read_bytes() in FILES.values()
    for name, content in download.contents().items():
        assert name.startswith(".") or content == FILES[name]
    if (download.root / "refs/main").exists() or "config.json" in download.contents():
        assert download.contents().keys() >= TAKEN.keys() - {"config.json"}


# -- What is downloaded, and where to ----------------------------------------------------------------------------------


def test_a_complete_download_prints_its_directory(download: Download):
    result = download.run()

    assert (result.returncode, result.stdout) == (0, f"{download.snapshot}\n")
    assert_complete(download)
    # Links are relative, so the directory can be moved.
    assert not any(os.readlink(path).startswith("/") for path in download.snapshot.iterdir())


def test_no_module_is_imported_from_the_working_directory(download: Download, tmp_path: Path):
    for name in ("shutil", "fcntl", "json", "hashlib"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n")

    command = ["sh", "-c", f"cd {tmp_path} && exec {TGIS} download-weights {MODEL}"]
    result = subprocess.run(command, env=download.environment(), capture_output=True, text=True, timeout=60)

    assert (result.returncode, (tmp_path / "imported").exists()) == (0, False), result.stderr


def test_the_hub_library_finds_what_was_downloaded(downloaded: Download):
    program = f"import huggingface_hub as h; print(h.snapshot_download({MODEL!r}, ignore_patterns=['training*']))"
    offline = downloaded.environment() | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=False)

    assert result.stdout == f"{downloaded.snapshot}\n", result.stderr


def test_a_second_download_fetches_and_writes_nothing(downloaded: Download):
    downloaded.hub.requests.clear()
    before = {path: path.lstat().st_mtime_ns for path in downloaded.cache.rglob("*")}

    result = downloaded.run()

    assert "is already complete" in result.stderr
    assert [path for _, path, _ in downloaded.hub.requests] == [f"/api/models/{MODEL}/revision/main"]
    assert {path: path.lstat().st_mtime_ns for path in downloaded.cache.rglob("*")} == before


def test_a_dry_run_prints_sizes_and_writes_nothing(download: Download):
    result = download.run("--dry-run")

    assert f"3 MiB  {WEIGHTS}" in result.stdout
    assert "free there" in result.stdout
    assert not download.cache.exists()


def test_a_dry_run_as_json_lists_every_file(download: Download):
    plan = json.loads(download.run("--dry-run", "--json").stdout)

    assert {entry["name"]: entry["bytes"] for entry in plan["files"]} == {
        name: len(content) for name, content in TAKEN.items()
    }
    assert plan["missing_bytes"] == sum(map(len, TAKEN.values()))
    assert plan["free_bytes"] > 0


def test_events_end_with_the_directory(download: Download):
    events = [json.loads(line) for line in download.run("--json").stdout.splitlines()]

    assert events[0]["event"] == "plan"
    assert {event["name"] for event in events if event["event"] == "file"} == TAKEN.keys()
    assert events[-1] == {"event": "done", "text": "ready", "model_dir": str(download.snapshot)}


def test_a_commit_can_be_downloaded_without_a_branch(download: Download):
    assert download.run("--revision", COMMIT).returncode == 0

    assert download.contents() == TAKEN
    assert not (download.root / "refs").exists()


def test_content_in_the_librarys_shared_store_is_moved_into_the_folder(downloaded: Download):
    blob = (downloaded.snapshot / WEIGHTS).resolve()
    store = downloaded.cache / "blobs/ab"
    store.mkdir(parents=True)
    blob.rename(store / "abcd")
    blob.symlink_to(os.path.relpath(store / "abcd", blob.parent))

    listed = downloaded.run(command="models", model="--json")
    result = downloaded.run()

    assert "is stored outside the model's folder" in json.loads(listed.stdout)["models"][0]["problems"][0]
    assert (result.returncode, blob.is_symlink()) == (0, False)
    assert_complete(downloaded)


def test_sizes_missing_from_a_mirrors_listing_are_requested_per_file(download: Download):
    download.hub.has_metadata = False

    result = download.run()
    listed = json.loads(download.run(command="models", model="--json").stdout)

    assert result.returncode == 0, result.stderr
    assert_complete(download)
    assert listed["models"][0]["is_complete"]


# -- Faults during the transfer ---------------------------------------------------------------------------------------

STALLED, BROKEN, DAMAGED = "no data for ", "was interrupted", "the content does not match its checksum"
TEMPORARY = {
    "stalls": (Fault("stall", after=100_000), STALLED),
    "stalls-before-the-first-byte": (Fault("stall"), STALLED),
    "trickles": (Fault("trickle", after=100_000), STALLED),
    "is-cut": (Fault("cut", after=100_000), BROKEN),
    "500": (Fault("status", status=500), "the hub returned HTTP 500"),
    "503": (Fault("status", status=503), "the hub returned HTTP 503"),
    "429": (Fault("status", status=429, headers={"Retry-After": "1"}), "the hub limits the request rate (HTTP 429)"),
    "403-of-an-address-that-expired": (Fault("status", status=403), "the hub returned HTTP 403"),
    "is-damaged": (Fault("corrupt"), DAMAGED),
}
BY_XET = "by-xet.safetensors"  # the stub's Xet is silent


@pytest.mark.serial
def test_transfers_continue_after_temporary_faults(download: Download):
    """One download in which nine files each have a different fault, and a tenth two: by HTTP, and then by Xet."""
    names = [f"{name}.safetensors" for name in TEMPORARY]
    contents = {name: make_weights(200_000 + number) for number, name in enumerate([*names, BY_XET])}
    download.hub.files = contents | {"config.json": FILES["config.json"]}
    download.hub.faults = dict(zip(names, ([fault] for fault, _ in TEMPORARY.values()), strict=True))
    download.hub.faults[BY_XET] = [Fault("status", status=503)]
    download.hub.xet_names = {BY_XET}

    result = download.run("--stall-timeout", "1")

    expected = {
        name: f"{name}.safetensors: {sentence}" for name, (_, sentence) in TEMPORARY.items() if sentence != BROKEN
    }
    assert (result.returncode, [name for name, text in expected.items() if text not in result.stderr]) == (0, [])
    assert "is-cut.safetensors: the connection to" in result.stderr
    assert f"{BY_XET}: the hub returned HTTP 503; continuing in 1 s" in result.stderr
    assert f"{BY_XET}: no data for 1 s; continuing in 2 s over plain HTTP" in result.stderr
    assert download.contents() == download.hub.files
    assert download.leftovers() == []


def test_a_cut_download_resumes_where_it_stopped(download: Download):
    download.hub.faults[WEIGHTS] = [Fault("cut", after=1_000_000)]

    download.run()

    ranges = [asked for method, path, asked in download.hub.requests if (method, path) == ("GET", f"/cdn/{WEIGHTS}")]
    assert ranges[0] == ""
    assert 900_000 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= 1_000_000


def test_a_server_that_ignores_ranges_sends_the_whole_file_again(download: Download):
    download.hub.faults[WEIGHTS] = [Fault("cut", after=1_000_000), Fault("whole")]

    assert download.run().returncode == 0
    assert_complete(download)


def test_files_with_the_same_content_are_fetched_once(download: Download):
    download.hub.files["copy.json"] = download.hub.files["twin.json"] = b"{}" * 40_000

    assert download.run().returncode == 0

    assert download.contents() == TAKEN | dict.fromkeys(("copy.json", "twin.json"), b"{}" * 40000)
    assert download.hub.count("copy.json") + download.hub.count("twin.json") == 1


@pytest.mark.parametrize(
    "change",
    [{"commit": "../../../evil"}, {"files": {"../evil.json": b"{}"}}, {"files": {"/tmp/evil.json": b"{}"}}],
    ids=["commit", "name", "absolute"],
)
def test_a_hub_with_unsafe_names_is_refused(change: dict[str, Any], download: Download):
    for name, value in change.items():
        setattr(download.hub, name, value)

    result = download.run()

    assert result.returncode == 6
    assert "check HF_ENDPOINT" in result.stderr or ": do not use this hub" in result.stderr
    assert not download.cache.exists()


def test_a_branch_never_points_to_weights_that_cannot_be_converted(downloaded: Download):
    downloaded.hub.commit = "e" * 40
    downloaded.hub.files["pytorch_model.bin"] = b"no file of weights"
    del downloaded.hub.files[WEIGHTS]

    result = downloaded.run()

    assert (result.returncode, "pytorch_model.bin is damaged" in result.stderr) == (3, True)
    assert (downloaded.root / "refs/main").read_text() == COMMIT


def test_disk_space_for_the_conversion_is_checked_before_the_download(download: Download):
    size = shutil.disk_usage(download.cache.parent).free * 2 // 3
    download.hub.files["pytorch_model.bin"] = Huge(size)
    del download.hub.files[WEIGHTS]

    result = download.run()

    assert result.returncode == 4
    assert "The download of org/tiny, with its conversion, needs" in result.stderr
    assert download.hub.count("pytorch_model.bin") == 0


def test_incomplete_files_of_others_are_left_alone(download: Download):
    (download.root / "blobs").mkdir(parents=True)
    others = [download.root / "blobs" / f"{'ab' * 32}{mark}.incomplete" for mark in ("", ".0123abcd")]
    others[0].write_bytes(b"of another commit")
    others[1].touch()  # the library starts a download like this

    assert download.run().returncode == 0

    assert all(path.exists() for path in others)


def test_an_interrupted_conversion_is_completed(download: Download):
    torch = pytest.importorskip("torch")
    shards = {f"pytorch_model-{number}.bin": {f"w{number}": torch.ones(9)} for number in (1, 2)}
    del download.hub.files[WEIGHTS]
    for name, tensors in shards.items():
        torch.save(tensors, buffer := io.BytesIO())
        download.hub.files[name] = buffer.getvalue()
    index = {"weight_map": {f"w{number}": f"pytorch_model-{number}.bin" for number in (1, 2)}}
    download.hub.files["pytorch_model.bin.index.json"] = json.dumps(index).encode()
    download.run()
    made = ("model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json")
    assert set(made) <= download.contents().keys()
    for name in made[1:]:
        (download.snapshot / name).unlink()

    result = download.run()

    assert result.returncode == 0
    assert set(made) <= download.contents().keys()
    download.hub.requests.clear()
    assert download.run("--extension", ".bin").returncode == 0  # requested explicitly
    for name in shards:  # no longer needed, so not fetched again
        (download.snapshot / name).unlink()
    download.hub.requests.clear()
    assert download.run("--verify").returncode == 0
    assert [download.hub.count(name) for name in shards] == [0, 0]


def test_a_complete_read_only_cache_is_enough(downloaded: Download, tmp_path: Path):
    program = "import ctypes, os, sys; libc = ctypes.CDLL(None)\n"  # a read-only mount, even for root
    program += "assert libc.unshare(0x20000) == 0 and libc.mount(b'', b'/', b'', 0x44000, b'') == 0\n"
    program += "path = sys.argv[1].encode()\n"
    program += "assert libc.mount(path, path, b'', 0x1000, b'') == 0\n"
    program += "assert libc.mount(path, path, b'', 0x1000 | 1 | 32, b'') == 0\n"
    program += "os.execv(sys.argv[2], sys.argv[2:])"
    command = [sys.executable, "-c", program, downloaded.cache, TGIS, "download-weights", MODEL, "--verify"]

    result = subprocess.run(command, env=downloaded.environment(), capture_output=True, text=True, check=False)

    if "AssertionError" in result.stderr:
        pytest.skip("mounting is not permitted here")
    assert (result.returncode, result.stdout) == (0, f"{downloaded.snapshot}\n"), result.stderr


def test_content_that_never_matches_its_checksum_is_discarded(download: Download):
    download.hub.faults[WEIGHTS] = [Fault("corrupt")] * 9

    result = download.run()

    assert result.returncode == 3
    assert f"{WEIGHTS} arrived 2 times, never with the checksum that the hub states" in result.stderr
    assert WEIGHTS not in download.contents()
    assert "config.json" not in download.contents()


def test_metadata_requests_are_retried(download: Download):
    download.hub.faults[""] = [Fault("status", status=500)]

    result = download.run()

    assert result.returncode == 0
    assert "The hub returned HTTP 500; trying again in 1 s" in result.stderr


# -- What the hub refuses ---------------------------------------------------------------------------------------------


def test_a_private_model_is_downloaded_with_a_token_from_the_environment(download: Download):
    download.hub.needs_token = "hf_secret"

    refused = download.run()
    download.environ = {"HF_TOKEN": "hf_secret\n"}  # with a line break, like the content of a secret's file
    allowed = download.run()

    assert (refused.returncode, allowed.returncode) == (3, 0)
    assert "If the model is private, no token is set" in refused.stderr
    assert download.hub.leaked_tokens == []  # tokens that reached the other host, to which content is redirected


def test_a_token_is_not_on_the_command_lines_of_workers(download: Download):
    download.hub.needs_token = "hf_secret"
    download.hub.bytes_per_s = 3_000_000

    process = download.start("--token", "hf_secret")
    wait_until(lambda: download.hub.count(WEIGHTS), "the transfer")
    lines = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)]
    process.communicate(timeout=30)

    assert process.returncode == 0
    assert lines
    assert not any("hf_secret" in line for line in lines)


def test_a_wrong_token_is_distinguished_from_no_token(download: Download):
    download.hub.needs_token = "hf_secret"
    download.environ = {"HF_TOKEN": "hf_other"}

    result = download.run()

    assert result.returncode == 3
    assert "the token in use does not reveal it" in result.stderr
    assert "hf_other" not in result.stderr


def test_a_gated_model_is_refused_with_the_address_of_its_terms(download: Download):
    download.hub.is_gated = True

    result = download.run()

    assert result.returncode == 3
    assert f"{MODEL} is gated" in result.stderr
    assert f"Accept its terms at {download.hub.url}/{MODEL}" in result.stderr
    assert list(download.cache.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "model", "exit_code", "sentence"),
    [
        ([], "org/none", 3, "has no model org/none, and there is no directory of that name"),
        (["--revision", "v9"], MODEL, 3, "org/tiny has no revision v9"),
        (["--extension", ".gguf"], MODEL, 3, "has no file that ends with .gguf; its files end with"),
    ],
)
def test_impossible_requests_are_refused_in_one_sentence(
    arguments: list[str], model: str, exit_code: int, sentence: str, download: Download
):
    result = download.run(*arguments, model=model)

    assert result.returncode == exit_code
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not download.cache.exists()


def test_a_failure_is_an_event_too(download: Download):
    event = json.loads(download.run("--json", model="org/none").stdout)

    assert (event["event"], event["exit_code"]) == ("failed", 3)


# -- Without a network ------------------------------------------------------------------------------------------------

OFFLINE = {"HF_HUB_OFFLINE": "1"}
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize("environ", [OFFLINE, UNREACHABLE], ids=["HF_HUB_OFFLINE", "unreachable"])
def test_a_complete_model_is_found_without_the_hub(environ: dict[str, str], downloaded: Download):
    downloaded.environ = environ

    result = downloaded.run("--verify")

    assert (result.returncode, result.stdout) == (0, f"{downloaded.snapshot}\n")
    assert f"org/tiny is complete in the cache (main, commit {COMMIT[:8]}), so the hub is not needed" in result.stderr
    assert "checked 5 files: none damaged" in result.stderr


def test_a_missing_model_in_offline_mode_is_explained_with_both_causes(download: Download):
    download.environ = OFFLINE

    result = download.run()

    assert result.returncode == 6
    assert "org/tiny is not complete in the cache at main, and HF_HUB_OFFLINE forbids asking" in result.stderr


def test_without_the_hub_the_missing_file_of_an_incomplete_model_is_named(downloaded: Download):
    (downloaded.snapshot / WEIGHTS).resolve().unlink()
    downloaded.environ = OFFLINE

    result = downloaded.run()

    assert result.returncode == 6
    assert f"In the cache, {WEIGHTS} is missing." in result.stderr


def test_damage_without_the_hub_is_an_error_and_removes_nothing(downloaded: Download):
    damage(downloaded.snapshot / WEIGHTS)
    downloaded.environ = OFFLINE

    result = downloaded.run("--verify")

    assert result.returncode == 3
    assert f"{WEIGHTS} of org/tiny is damaged" in result.stderr
    assert (downloaded.snapshot / WEIGHTS).exists()


def damage(path: Path) -> None:
    """Change a byte without changing the size."""
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"?")


def test_damage_is_found_and_fetched_again(downloaded: Download):
    damage(downloaded.snapshot / WEIGHTS)

    result = downloaded.run("--verify")

    assert result.returncode == 0
    assert "checked 5 files: 1 damaged" in result.stderr
    assert_complete(downloaded)


def test_weights_that_were_published_in_both_formats_are_left_as_they_are(downloaded: Download):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(999)}, downloaded.snapshot / "pytorch_model.bin")  # as another program would

    result = downloaded.run("--verify")

    assert result.returncode == 0, result.stderr
    assert (downloaded.snapshot / WEIGHTS).read_bytes() == TAKEN[WEIGHTS]


@pytest.mark.parametrize("what", ["cut", "changed", "source changed"])
def test_damaged_conversions_are_repaired(what: str, download: Download):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(999)}, buffer := io.BytesIO())
    del download.hub.files[WEIGHTS]
    download.hub.files["pytorch_model.bin"] = buffer.getvalue()
    download.run()
    before = download.contents()
    damaged = download.snapshot / ("pytorch_model.bin" if what == "source changed" else WEIGHTS)
    damaged.write_bytes(before[damaged.name][:-50] + (b"" if what == "cut" else b"?" * 50))

    result = download.run(*([] if what == "cut" else ["--verify"]))

    assert result.returncode == 0, result.stderr
    assert download.contents() == before


# -- Full disks, bad directories ----------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_detected_before_the_first_byte(download: Download):
    download.hub.files[WEIGHTS] = Huge(1 << 50)

    result = download.run()

    assert result.returncode == 4
    assert "The download of org/tiny needs 1024.0 TiB" in result.stderr
    assert download.hub.count(WEIGHTS) == 0


class Huge(bytes):
    """Content of an announced size that is never sent."""

    def __new__(cls, size: int) -> Huge:
        made = super().__new__(cls, b"x")
        made.size = size
        return made

    def __len__(self) -> int:
        return self.size


@pytest.mark.parametrize("limit", [1, len(FILES[WEIGHTS]) - 1])
def test_a_full_disk_is_reported_and_the_next_run_resumes(limit: int, download: Download):
    download.environ = {"PYTHONPATH": str(write_limit(download.cache.parent, limit))}

    full = download.run()
    download.environ = {}
    again = download.run()

    assert full.returncode == 4, full.stderr
    assert "No space is left in" in full.stderr
    assert again.returncode == 0
    assert_complete(download)


def write_limit(directory: Path, num_bytes: int) -> Path:
    """A folder that, on PYTHONPATH, limits the size of files that workers write."""
    program = (
        "import resource, signal, sys\n"
        "if 'tgis_cli.model_files.download.fetch_worker' in ' '.join(sys.orig_argv):\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes}))\n"
    )
    (directory / "limit").mkdir()
    (directory / "limit/sitecustomize.py").write_text(program)
    return directory / "limit"


@pytest.mark.skipif(os.getuid() == 0 and not Path("/proc").is_dir(), reason="needs a directory that cannot be written")
def test_a_cache_that_cannot_be_written_is_refused_before_any_transfer(download: Download):
    download.cache = Path("/proc/cache")

    result = download.run()

    assert result.returncode == 2
    assert "The cache /proc/cache cannot be written" in result.stderr
    assert "--fs-group" in result.stderr
    assert download.hub.count(WEIGHTS) == 0


# -- Concurrent and interrupted downloads --------------------------------------------------------------------------


def test_two_downloads_of_one_model_fetch_it_once(download: Download):
    download.hub.bytes_per_s = 3_000_000

    both = [download.start(), download.start()]
    outputs = [process.communicate(timeout=60) for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert [stdout for stdout, _ in outputs] == [f"{download.snapshot}\n"] * 2
    assert sum("another process is working on org/tiny: waiting for it" in stderr for _, stderr in outputs) == 1
    assert download.hub.count(WEIGHTS) == 1
    assert_complete(download)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_keeps_partial_content(number: signal.Signals, download: Download):
    download.hub.bytes_per_s = 3_000_000
    process = download.start()
    wait_until(lambda: any(path.stat().st_size > 500_000 for path in download.root.glob("blobs/*.incomplete")), "bytes")

    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    download.hub.bytes_per_s = 0
    again = download.run()

    assert process.returncode == 128 + number
    assert f"Stopped by {number.name}" in stderr
    assert "the same command resumes from there" in stderr
    assert "are already here" in again.stderr
    assert_complete(download)


@pytest.mark.parametrize("num_kills", NUM_KILLS)
def test_downloads_killed_at_random_moments_leave_no_damage_and_the_next_one_completes(
    download: Download, num_kills: int
):
    draw = random.Random(os.environ.get("TGIS_KILL_SEED", "0"))
    download.hub.bytes_per_s = 6_000_000
    for run in range(num_kills):
        process = download.start()
        if draw.random() < 0.8:  # otherwise kill at any moment, usually before workers start
            seen = len(download.hub.requests)
            wait_until(lambda: len(download.hub.requests) > seen or process.poll() is not None, "a request")  # noqa: B023
        time.sleep(draw.uniform(0, 1.0))
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()

        psutil.wait_procs(workers, timeout=5)
        assert [worker for worker in workers if worker.is_running()] == [], f"run {run}"
        assert_final_names_are_whole(download)
        if run % 2:
            again = download.run()
            assert again.returncode == 0, again.stderr
            assert_complete(download)
            subprocess.run(["rm", "-rf", str(download.cache)], check=True)
    assert download.run().returncode == 0
    assert_complete(download)
