"""`tgis download-weights` against a hub that fails in every way."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from hub_stub import COMMIT, MODEL, Fault, HubStub, digest_of, serve_hub

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
    """Runs the command against the stub, with a cache of its own."""

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
    """One whose model is there, in a cache of its own."""
    shutil.copytree(complete_cache, download.cache, symlinks=True)
    return download


def assert_complete(download: Download) -> None:
    assert download.contents() == TAKEN
    assert (download.root / "refs/main").read_text() == COMMIT
    assert download.leftovers() == []


def assert_nothing_wrong_under_a_final_name(download: Download) -> None:
    """Whatever has been interrupted: what is there is whole."""
    known = set(map(digest_of, FILES.values()))
    for path in (download.root / "blobs").glob("*"):
        if "incomplete" not in path.name and not path.name.startswith("."):
            assert path.name in known
            assert path.read_bytes() in FILES.values()
    for name, content in download.contents().items():
        assert name.startswith(".") or content == FILES[name]
    if (download.root / "refs/main").exists() or "config.json" in download.contents():
        assert download.contents().keys() >= TAKEN.keys() - {"config.json"}


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.005)


# -- What is taken and where it goes ----------------------------------------------------------------------------------


def test_a_download_prints_its_directory_and_is_complete(download: Download):
    result = download.run()

    assert (result.returncode, result.stdout) == (0, f"{download.snapshot}\n")
    assert_complete(download)
    assert not any(os.readlink(path).startswith("/") for path in download.snapshot.iterdir())  # it may be moved


def test_nothing_of_the_directory_where_it_is_started_is_imported(download: Download, tmp_path: Path):
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


def test_a_second_download_fetches_nothing_and_writes_nothing(downloaded: Download):
    downloaded.hub.requests.clear()
    before = {path: path.lstat().st_mtime_ns for path in downloaded.cache.rglob("*")}

    result = downloaded.run()

    assert "is complete already" in result.stderr
    assert [path for _, path, _ in downloaded.hub.requests] == [f"/api/models/{MODEL}/revision/main"]
    assert {path: path.lstat().st_mtime_ns for path in downloaded.cache.rglob("*")} == before


def test_a_dry_run_tells_sizes_and_writes_nothing(download: Download):
    result = download.run("--dry-run")

    assert f"3 MiB  {WEIGHTS}" in result.stdout
    assert "free there" in result.stdout
    assert not download.cache.exists()


def test_a_dry_run_as_json_has_every_file(download: Download):
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


def test_a_commit_can_be_asked_for_and_gets_no_name(download: Download):
    assert download.run("--revision", COMMIT).returncode == 0

    assert download.contents() == TAKEN
    assert not (download.root / "refs").exists()


def test_content_in_the_librarys_store_for_all_models_is_brought_in(downloaded: Download):
    blob = (downloaded.snapshot / WEIGHTS).resolve()
    store = downloaded.cache / "blobs/ab"
    store.mkdir(parents=True)
    blob.rename(store / "abcd")
    blob.symlink_to(os.path.relpath(store / "abcd", blob.parent))

    listed = downloaded.run(command="models", model="--json")
    result = downloaded.run()

    assert "lies outside the model's folder" in json.loads(listed.stdout)["models"][0]["problems"][0]
    assert (result.returncode, blob.is_symlink()) == (0, False)
    assert_complete(downloaded)


def test_a_mirror_without_sizes_in_its_listing_is_asked_for_each_file(download: Download):
    download.hub.has_metadata = False

    result = download.run()
    listed = json.loads(download.run(command="models", model="--json").stdout)

    assert result.returncode == 0, result.stderr
    assert_complete(download)
    assert listed["models"][0]["is_complete"]


# -- What goes wrong on the way ---------------------------------------------------------------------------------------

STALLED, BROKEN, DAMAGED = "nothing came for 1 s", "broke off", "what came does not match its checksum"
TEMPORARY = {
    "stalls": (Fault("stall", after=100_000), STALLED),
    "stalls-before-the-first-byte": (Fault("stall"), STALLED),
    "trickles": (Fault("trickle", after=100_000), STALLED),
    "is-cut": (Fault("cut", after=100_000), BROKEN),
    "500": (Fault("status", status=500), "the hub answers HTTP 500"),
    "503": (Fault("status", status=503), "the hub answers HTTP 503"),
    "429": (Fault("status", status=429, headers={"Retry-After": "1"}), "the hub wants fewer requests (HTTP 429)"),
    "403-of-an-address-that-expired": (Fault("status", status=403), "the hub answers HTTP 403"),
    "is-damaged": (Fault("corrupt"), DAMAGED),
}


@pytest.mark.serial
def test_transfers_go_on_after_whatever_may_pass(download: Download):
    """One download of nine files, each of which meets with something else."""
    contents = {f"{name}.safetensors": make_weights(200_000 + number) for number, name in enumerate(TEMPORARY)}
    download.hub.files = contents | {"config.json": FILES["config.json"]}
    download.hub.faults = {f"{name}.safetensors": [fault] for name, (fault, _) in TEMPORARY.items()}

    result = download.run("--stall-timeout", "1")

    told = {name: f"{name}.safetensors: {sentence}" for name, (_, sentence) in TEMPORARY.items() if sentence != BROKEN}
    assert (result.returncode, [name for name, text in told.items() if text not in result.stderr]) == (0, [])
    assert "is-cut.safetensors: the connection to" in result.stderr
    assert download.contents() == download.hub.files
    assert download.leftovers() == []


def test_what_has_arrived_is_not_fetched_again(download: Download):
    download.hub.faults[WEIGHTS] = [Fault("cut", after=1_000_000)]

    download.run()

    ranges = [asked for method, path, asked in download.hub.requests if (method, path) == ("GET", f"/cdn/{WEIGHTS}")]
    assert ranges[0] == ""
    assert 900_000 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= 1_000_000


def test_a_server_that_ignores_ranges_sends_all_anew(download: Download):
    download.hub.faults[WEIGHTS] = [Fault("cut", after=1_000_000), Fault("whole")]

    assert download.run().returncode == 0
    assert_complete(download)


@pytest.mark.serial
def test_a_transfer_in_vain_is_tried_by_xet_and_when_that_stalls_goes_on_over_http(download: Download):
    download.hub.xet_names = {WEIGHTS}
    download.hub.faults[WEIGHTS] = [Fault("status", status=503)]

    result = download.run("--stall-timeout", "1")

    assert f"{WEIGHTS}: the hub answers HTTP 503; going on in 1 s" in result.stderr
    assert f"{WEIGHTS}: nothing came for 1 s; going on in 2 s over plain HTTP" in result.stderr
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
def test_a_hub_whose_names_lead_elsewhere_is_refused(change: dict[str, Any], download: Download):
    for name, value in change.items():
        setattr(download.hub, name, value)

    result = download.run()

    assert result.returncode == 6
    assert "check HF_ENDPOINT" in result.stderr or "which cannot be: do not use this hub" in result.stderr
    assert not download.cache.exists()


def test_a_branch_does_not_come_to_mean_what_cannot_be_converted(downloaded: Download):
    downloaded.hub.commit = "e" * 40
    downloaded.hub.files["pytorch_model.bin"] = b"no file of weights"
    del downloaded.hub.files[WEIGHTS]

    result = downloaded.run()

    assert (result.returncode, "pytorch_model.bin is damaged" in result.stderr) == (3, True)
    assert (downloaded.root / "refs/main").read_text() == COMMIT


def test_room_for_the_conversion_is_asked_for_before_the_download(download: Download):
    size = shutil.disk_usage(download.cache.parent).free * 2 // 3
    download.hub.files["pytorch_model.bin"] = Huge(size)
    del download.hub.files[WEIGHTS]

    result = download.run()

    assert result.returncode == 4
    assert "What is missing of org/tiny, with its conversion, needs" in result.stderr
    assert download.hub.count("pytorch_model.bin") == 0


def test_what_others_have_begun_in_the_folder_is_left_alone(download: Download):
    (download.root / "blobs").mkdir(parents=True)
    others = [download.root / "blobs" / f"{'ab' * 32}{mark}.incomplete" for mark in ("", ".0123abcd")]
    others[0].write_bytes(b"of another commit")
    others[1].touch()  # as the library begins

    assert download.run().returncode == 0

    assert all(path.exists() for path in others)


def test_a_conversion_that_was_killed_is_completed(download: Download):
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
    assert download.run("--extension", ".bin").returncode == 0  # asked for by name
    for name in shards:  # nobody needs them any more, and they are not fetched again
        (download.snapshot / name).unlink()
    download.hub.requests.clear()
    assert download.run("--verify").returncode == 0
    assert [download.hub.count(name) for name in shards] == [0, 0]


def test_a_complete_cache_that_cannot_be_written_is_enough(downloaded: Download, tmp_path: Path):
    program = "import ctypes, os, sys; libc = ctypes.CDLL(None)\n"  # a read-only mount, also for root
    program += "assert libc.unshare(0x20000) == 0 and libc.mount(b'', b'/', b'', 0x44000, b'') == 0\n"
    program += "path = sys.argv[1].encode()\n"
    program += "assert libc.mount(path, path, b'', 0x1000, b'') == 0\n"
    program += "assert libc.mount(path, path, b'', 0x1000 | 1 | 32, b'') == 0\n"
    program += "os.execv(sys.argv[2], sys.argv[2:])"
    command = [sys.executable, "-c", program, downloaded.cache, TGIS, "download-weights", MODEL, "--verify"]

    result = subprocess.run(command, env=downloaded.environment(), capture_output=True, text=True, check=False)

    if "AssertionError" in result.stderr:
        pytest.skip("no right to mount")
    assert (result.returncode, result.stdout) == (0, f"{downloaded.snapshot}\n"), result.stderr


def test_content_that_never_matches_its_checksum_is_refused_and_not_kept(download: Download):
    download.hub.faults[WEIGHTS] = [Fault("corrupt")] * 9

    result = download.run()

    assert result.returncode == 3
    assert f"{WEIGHTS} came 2 times, never with the checksum that the hub states" in result.stderr
    assert WEIGHTS not in download.contents()
    assert "config.json" not in download.contents()


def test_metadata_is_asked_for_again(download: Download):
    download.hub.faults[""] = [Fault("status", status=500)]

    result = download.run()

    assert result.returncode == 0
    assert "The hub answers HTTP 500; trying again in 1 s" in result.stderr


# -- What the hub refuses ---------------------------------------------------------------------------------------------


def test_a_private_model_needs_a_token_and_gets_it_from_the_environment(download: Download):
    download.hub.needs_token = "hf_secret"

    refused = download.run()
    download.environ = {"HF_TOKEN": "hf_secret\n"}  # as a file of a secret ends
    allowed = download.run()

    assert (refused.returncode, allowed.returncode) == (3, 0)
    assert "If the model is private, no token is set" in refused.stderr
    assert download.hub.leaked_tokens == []  # the other host, to which content is redirected


def test_a_token_on_the_command_line_is_not_seen_in_those_of_workers(download: Download):
    download.hub.needs_token = "hf_secret"
    download.hub.bytes_per_s = 3_000_000

    process = download.start("--token", "hf_secret")
    wait_until(lambda: download.hub.count(WEIGHTS), "the transfer")
    lines = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)]
    process.communicate(timeout=30)

    assert process.returncode == 0
    assert lines
    assert not any("hf_secret" in line for line in lines)


def test_a_wrong_token_is_told_from_none(download: Download):
    download.hub.needs_token = "hf_secret"
    download.environ = {"HF_TOKEN": "hf_other"}

    result = download.run()

    assert result.returncode == 3
    assert "the token that is used does not show it" in result.stderr
    assert "hf_other" not in result.stderr


def test_a_gated_model_is_explained_with_where_to_go(download: Download):
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
        (["--extension", ".gguf"], MODEL, 3, "has no file that ends with .gguf; it has"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
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
    assert f"org/tiny is complete in the cache (main, commit {COMMIT[:8]}), nothing is asked" in result.stderr
    assert "checked 5 files: none damaged" in result.stderr


def test_offline_and_not_in_the_cache_says_both(download: Download):
    download.environ = OFFLINE

    result = download.run()

    assert result.returncode == 6
    assert "org/tiny is not complete in the cache at main, and HF_HUB_OFFLINE forbids asking" in result.stderr


def test_an_incomplete_model_without_the_hub_names_what_is_missing(downloaded: Download):
    (downloaded.snapshot / WEIGHTS).resolve().unlink()
    downloaded.environ = OFFLINE

    result = downloaded.run()

    assert result.returncode == 6
    assert f"In the cache, {WEIGHTS} is missing." in result.stderr


def test_damage_without_the_hub_is_an_error_and_nothing_is_removed(downloaded: Download):
    damage(downloaded.snapshot / WEIGHTS)
    downloaded.environ = OFFLINE

    result = downloaded.run("--verify")

    assert result.returncode == 3
    assert f"{WEIGHTS} of org/tiny is damaged" in result.stderr
    assert (downloaded.snapshot / WEIGHTS).exists()


def damage(path: Path) -> None:
    """Change a byte, not the size."""
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
    torch.save({"w": torch.ones(999)}, downloaded.snapshot / "pytorch_model.bin")  # by another program

    result = downloaded.run("--verify")

    assert result.returncode == 0, result.stderr
    assert (downloaded.snapshot / WEIGHTS).read_bytes() == TAKEN[WEIGHTS]


@pytest.mark.parametrize("what", ["cut", "changed", "source changed"])
def test_damage_of_converted_weights_is_mended(what: str, download: Download):
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


# -- Full disks, strange directories ----------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_known_before_the_first_byte(download: Download):
    download.hub.files[WEIGHTS] = Huge(1 << 50)

    result = download.run()

    assert result.returncode == 4
    assert "What is missing of org/tiny needs 1048576.0 GiB" in result.stderr
    assert download.hub.count(WEIGHTS) == 0


class Huge(bytes):
    """Content that is announced but never sent."""

    def __new__(cls, size: int) -> Huge:
        made = super().__new__(cls, b"x")
        made.size = size
        return made

    def __len__(self) -> int:
        return self.size


@pytest.mark.parametrize("limit", [1, len(FILES[WEIGHTS]) - 1])
def test_a_disk_that_fills_up_ends_it_in_a_sentence_and_the_next_run_goes_on(limit: int, download: Download):
    download.environ = {"PYTHONPATH": str(write_limit(download.cache.parent, limit))}

    full = download.run()
    download.environ = {}
    again = download.run()

    assert full.returncode == 4, full.stderr
    assert "No room is left in" in full.stderr
    assert again.returncode == 0
    assert_complete(download)


def write_limit(directory: Path, num_bytes: int) -> Path:
    """A folder that, on PYTHONPATH, lets the workers write no larger files."""
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
def test_a_cache_that_cannot_be_written_is_refused_before_anything(download: Download):
    download.cache = Path("/proc/cache")

    result = download.run()

    assert result.returncode == 2
    assert "The cache /proc/cache cannot be written" in result.stderr
    assert download.hub.count(WEIGHTS) == 0


# -- Several at once, and ends at any moment --------------------------------------------------------------------------


def test_two_downloads_of_one_model_share_the_work(download: Download):
    download.hub.bytes_per_s = 3_000_000

    both = [download.start(), download.start()]
    outputs = [process.communicate(timeout=60) for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert [stdout for stdout, _ in outputs] == [f"{download.snapshot}\n"] * 2
    assert sum("another process works on org/tiny: waiting for it" in stderr for _, stderr in outputs) == 1
    assert download.hub.count(WEIGHTS) == 1
    assert_complete(download)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_keeps_what_has_arrived(number: signal.Signals, download: Download):
    download.hub.bytes_per_s = 3_000_000
    process = download.start()
    wait_until(lambda: any(path.stat().st_size > 500_000 for path in download.root.glob("blobs/*.incomplete")), "bytes")

    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    download.hub.bytes_per_s = 0
    again = download.run()

    assert process.returncode == 130
    assert f"Stopped by {number.name}" in stderr
    assert "the same command goes on from there" in stderr
    assert "are there from before" in again.stderr
    assert_complete(download)


@pytest.mark.parametrize("num_kills", NUM_KILLS)
def test_downloads_killed_at_random_moments_leave_nothing_wrong_and_the_next_one_completes(
    download: Download, num_kills: int
):
    draw = random.Random(os.environ.get("TGIS_KILL_SEED", "0"))
    download.hub.bytes_per_s = 6_000_000
    for run in range(num_kills):
        process = download.start()
        if draw.random() < 0.8:  # else at any moment, mostly before there are workers
            seen = len(download.hub.requests)
            wait_until(lambda: len(download.hub.requests) > seen or process.poll() is not None, "a request")  # noqa: B023
        time.sleep(draw.uniform(0, 1.0))
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()

        psutil.wait_procs(workers, timeout=5)
        assert [worker for worker in workers if worker.is_running()] == [], f"run {run}"
        assert_nothing_wrong_under_a_final_name(download)
        if run % 2:
            again = download.run()
            assert again.returncode == 0, again.stderr
            assert_complete(download)
            subprocess.run(["rm", "-rf", str(download.cache)], check=True)
    assert download.run().returncode == 0
    assert_complete(download)
