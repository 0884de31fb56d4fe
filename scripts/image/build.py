"""Build the wheel, the image and its SBOM; `make build` runs this.

The wheel is built on this machine, and the image installs it. A build context with only what the image needs is
collected in .cache/image, so `--wheels` and `--model` may name folders anywhere. Exits with 3 if this machine has no
program that builds images; the wheel has been built then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pip_settings import PipSettings, read_pip_settings
from tgis_server.host.interpreter import make_command
from tools import TOOLS, Build, build_image, export_stage, find_tool

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/image"
DIST = ROOT / "dist"
CONTEXT_FILES = ("Containerfile", "LICENSE", "constraints.txt", "scripts/image/assemble.py")
UNKNOWN_COMMIT = "unknown"
EARLIEST_S = 315532800  # 1980, where the dates of zip archives begin
USAGE, NO_TOOL, INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    os.umask(0o022)  # modes are part of the wheel and the image
    try:
        for problem in find_problems(options):
            print(problem, file=sys.stderr)
            return USAGE
        return build(options)
    except KeyboardInterrupt:
        print("Interrupted: no image was built.", file=sys.stderr)
        return INTERRUPTED
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd[:3]))} … failed: the lines above say why.", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
    return 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="build.py", description="Build the wheel, the image and its SBOM.")
    add = parser.add_argument
    add("--tool", choices=TOOLS, help="what builds the image (default: the first of these that is installed)")
    add("--base", help="the image with the interpreter (default: the one in Containerfile)")
    add("--torch", default="cpu", help="cpu, cuda, or a build of pytorch.org such as cu126 (default: cpu)")
    add("--extras", default="", help="extras of the wheel, as in tracing,guided")
    add("--wheels", type=Path, help="a folder with all wheels; pip's settings and indexes are not used then")
    add("--model", type=Path, help="a folder with a model, which the image gets as /models/NAME")
    add("--tag", help="the image's name (default: tgis:VERSION, and tgis:VERSION-COMMIT)")
    add("--no-cache", action="store_true", help="do not use layers of earlier builds")
    add("--wheel-only", action="store_true", help="build no image")
    return parser.parse_args(arguments)


def find_problems(options: argparse.Namespace) -> Iterator[str]:
    """Problems that would otherwise show only after minutes."""
    for folder in (options.wheels, options.model):
        if folder and not folder.is_dir():
            yield f"{folder} is not a folder."
    if options.model and not (options.model / "config.json").is_file():
        yield f"{options.model} is not a model: it has no config.json."
    if options.tool and shutil.which(options.tool) is None:
        installed = " or ".join(filter(shutil.which, TOOLS))
        yield f"{options.tool} is not installed" + (f"; --tool can be {installed}." if installed else ".")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if unknown := sorted({*filter(None, options.extras.split(","))}.difference(known)):
        yield f"There is no extra {', '.join(unknown)}; the wheel has {', '.join(known)}."


def build(options: argparse.Namespace) -> int:
    seconds, commit = read_commit()
    wheel = build_wheel(seconds)
    print(f"Built {wheel.relative_to(ROOT)}", flush=True)
    if wheel.name.endswith("-any.whl"):
        print(
            "It has no compiled operations for CPUs: build on x86-64 with g++ or clang++.", file=sys.stderr, flush=True
        )
    if options.wheel_only:
        return 0
    if (tool := options.tool or find_tool()) is None:
        print(f"No image was built: install one of {', '.join(TOOLS)}, or give --wheel-only.", file=sys.stderr)
        return NO_TOOL
    version = wheel.name.split("-")[1]
    tags = [options.tag] if options.tag else [f"tgis:{version}", f"tgis:{version}-{commit}"]
    with collect_context(wheel, options.wheels, options.model) as context:
        pip = PipSettings("", {}, []) if options.wheels else read_pip_settings(Path(sys.executable))
        job = plan_build(context, pip, options, version, commit, seconds)
        print(f"Building {tags[0]} with {tool}", flush=True)
        build_image(tool, replace(job, tags=tags))
        sbom = DIST / f"tgis-{version}.cdx.json"
        write_sbom(tool, job, sbom, seconds)
    print(f"Built {' and '.join(tags)}, and {sbom.relative_to(ROOT)}")
    return 0


def plan_build(
    context: Path, pip: PipSettings, options: argparse.Namespace, version: str, commit: str, seconds: int
) -> Build:
    arguments = {
        "VERSION": version,
        "COMMIT": commit,
        "CREATED": datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "TORCH": options.torch,
        "EXTRAS": options.extras,
        "WHEELS": "wheels" if options.wheels else "",
        "MODEL": f"model/{options.model.resolve().name}" if options.model else "",
        "INPUTS": digest_inputs(context, pip.text),
    }
    if options.base:
        arguments["BASE_IMAGE"] = options.base
    settings = context.with_name(f"{context.name}-pip.conf")
    settings.write_text(pip.text)
    secrets = pip.secrets | {"pip": settings} if pip.text else {}
    return Build(context, arguments, secrets, pip.folders, seconds, use_cache=not options.no_cache)


# -- what it is built from


def read_commit() -> tuple[int, str]:
    """The time of the commit, or SOURCE_DATE_EPOCH, and its hash, with `-dirty` if files have changed since."""
    git = ["git", "-C", str(ROOT)]
    shown = subprocess.run([*git, "log", "-1", "--format=%ct %h", "--abbrev=12"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    seconds, _, commit = shown.stdout.strip().partition(" ")
    if changed.stdout.strip():
        commit += "-dirty"
    return int(os.environ.get("SOURCE_DATE_EPOCH") or seconds or EARLIEST_S), commit or UNKNOWN_COMMIT


def build_wheel(seconds: int) -> Path:
    """Build the wheel into dist/, in place of earlier ones."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would pack files that are no longer in the source
    with tempfile.TemporaryDirectory() as folder:
        command = make_command("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT))
        subprocess.run(command, env=os.environ | {"SOURCE_DATE_EPOCH": str(seconds)}, check=True)
        (wheel,) = Path(folder).glob("tgis-*.whl")
        DIST.mkdir(exist_ok=True)
        for old in DIST.glob("tgis-*.whl"):
            old.unlink()
        return Path(shutil.move(wheel, DIST / wheel.name))


@contextmanager
def collect_context(wheel: Path, wheels: Path | None, model: Path | None) -> Iterator[Path]:
    """A folder with what the image is built from; large files are hard links where possible."""
    folders = {"wheels": wheels} | ({f"model/{model.resolve().name}": model} if model else {})
    CACHE.mkdir(parents=True, exist_ok=True)
    place = os.environ.get("TMPDIR") or CACHE  # not /tmp: it is often small, and not on the model's disk
    with tempfile.TemporaryDirectory(dir=place, prefix="context-") as folder:
        context = Path(folder, "context")
        for name in CONTEXT_FILES:
            copy(ROOT / name, context / name)
        copy(wheel, context / "dist" / wheel.name)
        for name, source in folders.items():
            if source is not None:
                shutil.copytree(source, context / name, copy_function=link_or_copy)
        yield context


def digest_inputs(context: Path, settings: str) -> str:
    """A digest of a build context: of the content of small files, and the size and time of large ones."""
    digest = hashlib.sha256(settings.encode())
    for path in sorted(path for path in context.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(context)).encode())
        state = path.stat()
        is_large = path.is_relative_to(context / "wheels") or path.is_relative_to(context / "model")
        digest.update(f"{state.st_size} {state.st_mtime_ns}".encode() if is_large else path.read_bytes())
    return digest.hexdigest()[:16]


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def link_or_copy(source: str, target: str) -> None:
    """Copies where hard links are impossible; a symbolic link is replaced by the file that it leads to."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


# -- the software bill of materials


def write_sbom(tool: str, job: Build, file: Path, seconds: int) -> None:
    """List the Python packages of the image, with versions and licences, as CycloneDX."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "environment")
        venv.create(place)
        (site,) = place.glob("lib/python*/site-packages")
        export_stage(tool, job, "metadata", site)
        program = Path(sys.executable).with_name("cyclonedx-py")
        options = ["--pyproject", ROOT / "pyproject.toml", "--output-reproducible", "-o", file]
        command = [program, "environment", *options, place]
        subprocess.run(
            [str(word) for word in command], env=os.environ | {"SOURCE_DATE_EPOCH": str(seconds)}, check=True
        )
    components = json.loads(file.read_text())["components"]
    print(f"Listed {len(components)} packages in {file.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # after removing temporary folders
    sys.exit(main(sys.argv[1:]))
