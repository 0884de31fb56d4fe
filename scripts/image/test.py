"""Build the image twice and try it; `make image-test` runs this, as root, on a Debian machine.

It needs buildah, debootstrap, util-linux and settings with which pip finds the packages, but no image registry: the
base is a small Debian, made once and kept in .cache/image. No mount or process remains, however this ends. Exits with 1
if a check fails, and with 2 if something is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from container import UID, WITH_PARENT, Image, Running, start
from pip_settings import read_pip_settings

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/integration"))
from hub_stub import MODEL, HubStub, serve_hub  # noqa: E402 - after its folder is on the path

CACHE = ROOT / ".cache/image"
BASE_FOLDER = CACHE / "base-bookworm"
WORK = CACHE / "test"
BUILDAH = shutil.which("buildah") or "buildah"
BASE = "localhost/tgis-base:bookworm"
PACKAGES = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
INSIDE = "--inside"  # tells the script that it is in its namespaces
MAX_BYTES_BUT_TORCH = 250_000_000
NUM_STREAMS = 4
NUM_TOKENS = 500  # seconds of work, so that the answers of all streams overlap
READY_TIMEOUT_S = 90.0
PANEL_TIMEOUT_S = 10.0  # from readiness to the ready panel in the log
LENGTH = ("--min-new-tokens", str(NUM_TOKENS), "--max-new-tokens", str(NUM_TOKENS))
GENERATE = ("tgis", "generate", "--json", *LENGTH, "Once upon a time")
DEMO_MODEL = "site-packages/tgis_server/demo_model"
FORBIDDEN = ("pip", "pip3", "gcc", "cc", "g++", "ld", "apt", "dnf", "rpm", "dpkg", "sh", "bash")
ORIGINAL = {  # the environment in the original's manifests
    "MODEL_NAME": MODEL,
    "TRANSFORMERS_CACHE": "/shared_model_storage/transformers_cache",
    "DEPLOYMENT_FRAMEWORK": "tgis_native",
    "DTYPE_STR": "float32",
    "NUM_SHARD": "2",
    "MAX_SEQUENCE_LENGTH": "2048",
    "MAX_BATCH_SIZE": "12",
    "MAX_CONCURRENT_REQUESTS": "64",
    "MAX_NEW_TOKENS": "1024",
}


def main() -> int:
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if missing or os.geteuid() != 0:
        print(f"This test of the image needs root, and {', '.join(sorted(set(PACKAGES.values())))}.", file=sys.stderr)
        return 2
    if sys.argv[1:] != [INSIDE]:
        return run_inside()
    trial = Trial()
    try:
        prepare_storage()
        try_all(trial)
    except (subprocess.SubprocessError, OSError) as error:
        trial.check(f"the trial runs to its end: {error}", False)
    print(f"\n{trial.num_passed} passed, {trial.num_failed} failed")
    return 1 if trial.num_failed else 0


def run_inside() -> int:
    """Run this script in namespaces of its own, where all mounts and processes end with it, and remove its images."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    remove_folder(WORK)
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    command = [*WITH_PARENT, "/usr/bin/unshare", *namespaces, sys.executable, __file__, INSIDE]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            process.kill()
            process.wait()
            remove_folder(WORK)


def remove_folder(folder: Path) -> None:
    """Remove a folder; processes of a killed trial may use it a moment longer."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.5)


class Trial:
    """Counts checks and prints a line for each."""

    def __init__(self) -> None:
        self.num_passed = self.num_failed = 0
        self._started_at = time.monotonic()

    def check(self, what: str, holds: bool, details: object = "") -> None:
        if holds:
            self.num_passed += 1
        else:
            self.num_failed += 1
        seconds = time.monotonic() - self._started_at
        print(f"{'ok    ' if holds else 'failed'} {seconds:4.0f} s  {what}", flush=True)
        if details and not holds:
            print("".join(f"       | {line}\n" for line in str(details).splitlines()[-30:]), end="", flush=True)


def prepare_storage() -> None:
    """Give buildah empty storage for images."""
    (WORK / "tmp").mkdir(parents=True)
    configuration = WORK / "storage.conf"
    os.environ |= {
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_STORAGE_CONF": str(configuration),
        "TMPDIR": str(WORK / "tmp"),
    }
    for driver in ("overlay", "vfs"):  # vfs copies every layer whole, and works everywhere
        place = WORK / driver
        configuration.write_text(f'[storage]\ndriver = "{driver}"\ngraphroot = "{place}"\nrunroot = "{place}-run"\n')
        if subprocess.run([BUILDAH, "info"], capture_output=True, check=False).returncode == 0:
            break


def buildah(*arguments: str | Path, check: bool = True) -> str:
    """Run buildah, and return what it prints."""
    done = subprocess.run([BUILDAH, *map(str, arguments)], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"buildah {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def try_all(trial: Trial) -> None:
    make_base()
    images = [build_image(trial, "first"), build_image(trial, "second", umask=0o077, TZ="Asia/Tokyo")]
    trial.check("two builds of the same commit have the same digests", images[0] == images[1], "\n".join(images))
    print_layers(trial, "first")
    image = mount_image("first")
    check_settings(trial, image)
    check_files(trial, image.root)
    with tempfile.TemporaryDirectory() as volume:
        os.chown(volume, UID, 0)
        demo_model = next(image.root.glob(f"opt/tgis/lib/python*/{DEMO_MODEL}"))
        try_server(trial, image, "one shard", ["tgis", "launch", "--num-shard", "1", "--dtype", "float32"], {}, [])
        try_missing_model(trial, image)
        try_download(trial, image, demo_model, volume)
        volumes = [f"{volume}:/shared_model_storage"]
        try_server(
            trial, image, "two shards, started like the original", ["text-generation-launcher"], ORIGINAL, volumes
        )


# -- the image


def make_base() -> None:
    """Make the base, a small Debian with Python: as a folder, which is cached, and as an image."""
    if not BASE_FOLDER.exists():
        print("Making the base image with debootstrap", flush=True)
        new = Path(tempfile.mkdtemp(dir=CACHE, prefix="base-new-"))
        command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm", str(new)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        for folder in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(new / folder)
        new.rename(BASE_FOLDER)
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, BASE_FOLDER, "/")
    buildah("commit", "--quiet", "--rm", container, BASE)


def build_image(trial: Trial, tag: str, umask: int = 0o022, **environ: str) -> str:
    """Build as `make build` does, and return the digests of image, wheel and SBOM."""
    program = ROOT / "scripts/image/build.py"
    options = ["--tool", "buildah", "--base", BASE, "--no-cache", "--tag", f"tgis-trial:{tag}"]
    log = WORK / f"{tag}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, program, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environ,
            umask=umask,
            check=False,
        )
    trial.check(f"the {tag} build succeeds", done.returncode == 0, log.read_text(errors="replace"))
    done.check_returncode()
    form = "{{.FromImageID}} {{.FromImageDigest}}"
    image = buildah("inspect", "--type", "image", "--format", form, f"tgis-trial:{tag}")
    files = [*(ROOT / "dist").glob("tgis-*.whl"), *(ROOT / "dist").glob("tgis-*.cdx.json")]
    return "\n".join([image, *(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)])


def mount_image(tag: str) -> Image:
    settings = json.loads(buildah("inspect", "--type", "image", f"tgis-trial:{tag}"))["OCIv1"]["config"]
    root = Path(buildah("mount", buildah("from", "--pull-never", f"tgis-trial:{tag}")))
    return Image(root, settings, dict(value.split("=", 1) for value in settings["Env"]))


def print_layers(trial: Trial, tag: str) -> None:
    """Print the size of each layer, and check the sum of all but PyTorch's."""
    image = json.loads(buildah("inspect", "--type", "image", f"tgis-trial:{tag}"))["OCIv1"]
    (file,) = WORK.glob("*/*-layers/layers.json")
    sizes = {
        layer.get("diff-digest"): layer["diff-size"] for layer in json.loads(file.read_text()) if "diff-size" in layer
    }
    names = re.findall(r"^COPY --from=build /image/(\w+)/ /$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    layers = list(
        zip(names[-len(image["rootfs"]["diff_ids"]) :], map(sizes.get, image["rootfs"]["diff_ids"]), strict=True)
    )
    for name, size in layers:
        print(f"       {size / 1e6:7.1f} MB  {name}")
    rest = sum(size for name, size in layers if name != "torch")
    limit = f"less than {MAX_BYTES_BUT_TORCH / 1e6:.0f} MB"
    trial.check(
        f"everything but PyTorch and its requirements takes {rest / 1e6:.1f} MB, {limit}", rest < MAX_BYTES_BUT_TORCH
    )


def check_settings(trial: Trial, image: Image) -> None:
    expected = {
        "User": "2000:0",
        "ExposedPorts": {"3000/tcp": {}, "8033/tcp": {}},
        "Entrypoint": ["tgis"],
        "Cmd": ["text-generation-launcher"],
        "WorkingDir": "/models",
        "StopSignal": "SIGTERM",
    }
    found = {name: image.settings.get(name) for name in expected}
    trial.check("user, ports, commands and stop signal are as documented", found == expected, found)
    labels = image.settings["Labels"]
    names = ("version", "revision", "created", "licenses", "base.name")
    told = [labels.get(f"org.opencontainers.image.{name}", "") for name in names]
    git = ["/usr/bin/git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout
    is_right = told[3:] == ["Apache-2.0", BASE] and all(told) and commit.startswith(told[1].partition("-")[0])
    trial.check("labels state version, commit, time, licence and base", is_right, labels)


def check_files(trial: Trial, root: Path) -> None:
    """Check what the image holds: as it was built from nothing, its layers hold nothing else."""
    files = [path for path in root.rglob("*") if not path.is_symlink()]
    modes = {path: path.stat().st_mode for path in files}
    trial.check("no file is setuid or setgid", *no([path for path, mode in modes.items() if mode & 0o6000]))
    open_to_all = [path for path, mode in modes.items() if mode & 0o002 and path != root / "tmp"]
    trial.check("nothing but /tmp is writable by everyone", *no(open_to_all))
    unreadable = [path for path, mode in modes.items() if not mode & 0o004]
    trial.check("everyone can read everything", *no(unreadable))
    programs = [path for path in files if path.name in FORBIDDEN and path.is_file() and os.access(path, os.X_OK)]
    trial.check("there is no pip, compiler, package manager or shell", *no(programs))
    unwanted = [
        path for path in files if path.name in ("tests", "pip", "ensurepip", ".cache", "pip.conf", "direct_url.json")
    ]
    trial.check("there are no tests, caches, settings of pip or records of sources", *no(unwanted))
    trial.check("the licence is there", (root / "licenses/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes())
    words = find_local_words()
    telling = [
        f"{path.relative_to(root)}: {word}" for path in files if path.is_file() for word in find_words(path, words)
    ]
    trial.check(f"no file reveals this machine ({len(words)} paths and addresses)", *no(telling))


def no(found: Sequence[object]) -> tuple[bool, str]:
    return not found, "\n".join(map(str, found))


def find_local_words() -> list[str]:
    """What files must not contain: paths of this machine, its proxies, and where its packages come from."""
    settings = read_pip_settings(Path(sys.executable))
    proxies = [value for name, value in os.environ.items() if name.lower().endswith("_proxy")]
    addresses = [word for word in re.findall(r"\S+://\S+", settings.text) if "pypi.org" not in word]
    words = {str(ROOT), str(CACHE), sys.prefix, sys.base_prefix, *map(str, settings.folders), *proxies, *addresses}
    return sorted(word for word in words if len(word) > len("/usr/local"))


def find_words(path: Path, words: Sequence[str]) -> list[str]:
    content = path.read_bytes()
    return [word for word in words if word.encode() in content]


# -- what runs in it


def try_server(
    trial: Trial, image: Image, title: str, command: Sequence[str], environ: Mapping[str, str], volumes: Sequence[str]
) -> None:
    """Serve, answer, and stop while answers are under way."""
    started_at = time.monotonic()
    with start(image, command, environ=environ, volumes=volumes) as server:
        if not server.wait(lambda: bool(server.ready()), READY_TIMEOUT_S):
            trial.check(f"{title}: the server is ready", False, server.log())
            return
        trial.check(f"{title}: ready after {time.monotonic() - started_at:.1f} s", True)
        is_compiled = server.wait(lambda: " on cpu (avx" in server.log(), PANEL_TIMEOUT_S)
        trial.check(f"{title}: compiled operations are used", is_compiled, server.log())
        trial.check(f"{title}: the launcher is the first process, as user {UID}:0", server.identity() == (UID, 0))
        expected = server.run(*GENERATE)
        is_answer = expected.returncode == 0 and json.loads(expected.stdout)["generated_token_count"] == NUM_TOKENS
        trial.check(f"{title}: answers over gRPC", is_answer, expected.stderr)
        for words in (["tgis", "health"], ["grpc_healthcheck", "--server-url", "localhost:8033", "--timeout", "5"]):
            probe = server.run(*words)
            trial.check(f"{title}: {' '.join(words[:2])} succeeds", probe.returncode == 0, probe.stderr)
        written = server.run("python", "-c", "open('/opt/tgis/x', 'w')")
        trial.check(f"{title}: the root is read-only", "Read-only file system" in written.stderr, written.stderr)
        try_drain(trial, title, server, expected.stdout)


def try_drain(trial: Trial, title: str, server: Running, expected: str) -> None:
    clients = [server.start_inside(*GENERATE) for _ in range(NUM_STREAMS)]
    in_flight = server.wait(lambda: server.ready().get("calls_in_flight") == NUM_STREAMS, 60)
    server.signal(signal.SIGTERM)
    outputs = [client.communicate(timeout=120) for client in clients]
    trial.check(f"{title}: SIGTERM came while {NUM_STREAMS} answers were under way", in_flight)
    texts = [json.loads(stdout or "{}").get("text") for stdout, _ in outputs]
    complete = texts == [json.loads(expected)["text"]] * NUM_STREAMS
    trial.check(f"{title}: no answer is lost", complete, "\n".join(stderr for _, stderr in outputs) or texts)
    exit_code = server.process.wait(60)
    trial.check(f"{title}: exit code 0", exit_code == 0, f"{exit_code}\n{server.log()}")


def try_missing_model(trial: Trial, image: Image) -> None:
    with start(image, ["tgis", "launch", "no/such-model"]) as server:
        exit_code = server.process.wait(60)
        trial.check("a missing model: exit code 3", exit_code == 3, f"{exit_code}\n{server.log()}")
        message = server.termination_log()
        trial.check("a missing model: the termination log says so", "Model no/such-model not found" in message, message)


def try_download(trial: Trial, image: Image, demo_model: Path, volume: str) -> None:
    """Download into a volume, as an init container does, with the original's command."""
    hub = HubStub({file.name: file.read_bytes() for file in demo_model.iterdir() if file.is_file()})
    with serve_hub(hub):
        environ = {"HF_ENDPOINT": hub.url, "TRANSFORMERS_CACHE": ORIGINAL["TRANSFORMERS_CACHE"]}
        command = ["text-generation-server", "download-weights", MODEL]
        volumes = [f"{volume}:/shared_model_storage"]
        with start(image, command, environ=environ, volumes=volumes, has_network=True) as download:
            exit_code = download.process.wait(120)
            log = download.log()
    found = [path.name for path in Path(volume).glob("transformers_cache/models--*/snapshots/*/*")]
    trial.check("a model is downloaded into a volume", exit_code == 0 and "model.safetensors" in found, log)


if __name__ == "__main__":
    sys.exit(main())
