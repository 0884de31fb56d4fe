"""Install TGIS inside a build container, and lay out the image's layers under /image.

`Containerfile` runs this with the base's interpreter. Only the standard library is available, and perhaps no shell. The
image starts out empty: it gets the interpreter, the packages, and the libraries that these load, without what only
people or compilers need. Nothing in it depends on the clock, the order of directory entries or the building machine, so
equal inputs give equal layers.
"""

from __future__ import annotations

import csv
import functools
import os
import re
import shutil
import ssl
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, distributions
from pathlib import Path

CONTEXT = Path("/context")
SECRETS = Path("/run/secrets")
PIP_CACHE = Path("/var/cache/tgis-pip")
IMAGE = Path("/image")
HOME = Path("/opt/tgis")  # the virtual environment, at the same path here and in the image
USER_ID = 2000  # the user that the original's image has

# Left out of the standard library: tests, graphical programs, and installers of packages.
UNWANTED_MODULES = (
    *("test", "tests", "idlelib", "tkinter", "_tkinter*.so", "turtledemo", "turtle.py", "lib2to3", "ensurepip"),
    *("site-packages", "dist-packages", "config-*", "__pycache__", "_test*.so", "_ctypes_test*.so"),
    *("_xxtestfuzz*.so", "xxlimited*.so"),
)
PROGRAMS = ("tgis", "text-generation-launcher", "text-generation-server", "grpc_healthcheck")
UNWANTED_FOLDERS = {"tests", "__pycache__"}  # of packages
UNWANTED_PATHS = ("torch/include", "torch/share")  # headers and CMake files
SYSTEM_FILES = (  # copied if the base has them
    *("/etc/nsswitch.conf", "/etc/os-release", "/etc/ld.so.cache", "/etc/crypto-policies/back-ends/opensslcnf.config"),
    *("/etc/pki/tls/fips_local.cnf", "/etc/pki/tls/openssl.d", "/usr/lib/locale/C.utf8"),
)
MODES = {Path("tmp"): 0o1777, Path("models"): 0o775}  # that differ from those of other folders and files
# How pip says that the package index does not have this version.
NOT_FOUND = ("No matching distribution", "Could not find a version")


def main(environ: Mapping[str, str]) -> None:
    os.umask(0o022)
    say("making a virtual environment")
    wheel = find_wheel(environ.get("VERSION", ""))
    pip = make_pip(environ.get("WHEELS", ""))
    run([find_base_python(), "-I", "-m", "venv", "--clear", "--without-pip", HOME])
    say("installing PyTorch")
    install_torch(pip, environ.get("TORCH") or "cpu")
    (site,) = HOME.glob("lib/python*/site-packages")
    of_torch = {distribution.name for distribution in distributions(path=[str(site)])}
    say("installing TGIS")
    extras = f"[{environ['EXTRAS']}]" if environ.get("EXTRAS") else ""
    pip.install(f"{wheel}{extras}")
    say("compiling")
    tidy(site)
    compile_packages(site)
    say("copying the interpreter")
    interpreter = IMAGE / "interpreter"
    copy_standard_library(interpreter)
    copy_libraries(interpreter, [HOME, *find_standard_library()])
    copy_system_files(interpreter)
    say("laying out the layers")
    lay_out_packages(site, of_torch)
    make_models(environ.get("MODEL", ""))
    for layer in IMAGE.iterdir():
        normalise(layer, int(environ.get("SOURCE_DATE_EPOCH") or 0))
    say("done")


def say(step: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {step}", flush=True)


def run(command: Sequence[object]) -> None:
    subprocess.run([str(word) for word in command], check=True)


@functools.cache  # first called before anything in the base is replaced
def find_base_python() -> Path:
    """The base's own interpreter, even if its `python3` is in a virtual environment."""
    return Path(sys.executable).resolve()


# -- the packages


def find_wheel(version: str) -> Path:
    wheels = sorted((CONTEXT / "dist").glob(f"tgis-{version or '*'}-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"dist/ of the build context must hold one wheel of TGIS {version}, and holds {len(wheels)}.")
    return wheels[0]


class Pip:
    """pip, which installs into `HOME` with the building machine's settings, or only from a folder of wheels."""

    def __init__(self, command: Sequence[object], wheels: Path | None) -> None:
        self._command = command
        settings = SECRETS / "pip"
        self._environ = {
            "PIP_CACHE_DIR": str(PIP_CACHE),
            "PIP_CONFIG_FILE": str(settings) if settings.exists() and wheels is None else os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        self._source = [] if wheels is None else ["--no-index", "--find-links", wheels]

    def install(self, *arguments: str) -> None:
        """Raises: `subprocess.CalledProcessError`, with what pip wrote in ``output``."""
        command = [
            *(*self._command, "--python", HOME / "bin/python", "install", "--no-compile", "--progress-bar", "off"),
            *("--quiet", "--constraint", CONTEXT / "constraints.txt", *self._source, *arguments),
        ]
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout, end="", flush=True)
        done.check_returncode()


def make_pip(wheels: str) -> Pip:
    """Take pip from the folder of wheels if it is there, otherwise from the base."""
    folder = CONTEXT / wheels if wheels else None
    if folder is not None and not folder.is_dir():
        sys.exit(f"{wheels} is not a folder of the build context.")
    if folder is not None and (own := sorted(folder.glob("pip-*.whl"))):
        return Pip([find_base_python(), "-I", own[-1] / "pip"], folder)
    place = Path("/tmp/pip")  # noqa: S108 - in a build container, which nobody shares
    try:
        run([find_base_python(), "-I", "-m", "venv", place])
    except subprocess.CalledProcessError:
        sys.exit("The base has no pip for its virtual environments: put a wheel of pip into the folder of WHEELS.")
    return Pip([place / "bin/python", "-m", "pip"], folder)


def install_torch(pip: Pip, build: str) -> None:
    """Install the requested build of PyTorch, in the version that constraints.txt pins."""
    pinned = re.search(r"^torch==([\w.]+)", (CONTEXT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None, "constraints.txt pins torch"
    if build == "cuda":
        pip.install(f"torch=={pinned[1]}")
    else:
        requirement = f"torch=={pinned[1]}+{build}"
        try:
            pip.install(requirement)
        except subprocess.CalledProcessError as error:
            if not any(sign in error.output for sign in NOT_FOUND):
                raise
            index = f"https://download.pytorch.org/whl/{build}"
            print(f"pip's own sources do not have {requirement}: trying {index}", flush=True)
            pip.install("--extra-index-url", index, requirement)
    version = next(HOME.glob("lib/python*/site-packages/torch/version.py")).read_text()
    if (build != "cpu") is bool(re.search(r"^cuda\b.*= None$", version, re.MULTILINE)):
        sys.exit(f"pip found another build of PyTorch than TORCH={build}: is that build among its sources?")


def tidy(site: Path) -> None:
    """Remove tests, headers, other packages' programs, and traces of the building machine."""
    for path in UNWANTED_PATHS:
        shutil.rmtree(site / path, ignore_errors=True)
    for folder, folders, _ in os.walk(site):
        for name in UNWANTED_FOLDERS.intersection(folders):
            shutil.rmtree(Path(folder, name))
            folders.remove(name)
    for file in (HOME / "bin").iterdir():
        if file.name not in PROGRAMS:
            file.unlink()
    for link in ("python", "python3"):  # straight to the interpreter, which is all that the image has of its folder
        (HOME / "bin" / link).symlink_to(find_base_python())
    for source in site.glob("*.dist-info/direct_url.json"):
        source.unlink()
    for record in site.glob("*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if (site / next(csv.reader([line]))[0]).exists()))


def compile_packages(site: Path) -> None:
    """Compile every package in a fresh interpreter: bytecode also depends on what was compiled before it."""
    large = site / "torch"
    parts = sorted(path for path in site.iterdir() if path.is_dir() and path != large)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = [pool.submit(compile_folders, [large])] if large.exists() else []
        jobs.append(pool.submit(compile_folders, parts))
        jobs.append(pool.submit(compile_folders, sorted(site.glob("*.py"))))
    for job in jobs:
        job.result()


def compile_folders(paths: Sequence[Path], strip: Path | None = None) -> None:
    """
    Args:
        strip: the start of the paths that they do not have in the image.
    """
    if paths:
        place = ["-s", strip, "-p", "/"] if strip else []
        # Python then checks neither a source's time, which a second build would change, nor its content, which stays.
        options = ["-qq", "--invalidation-mode", "unchecked-hash", *place]
        command = [find_base_python(), "-m", "compileall", *options, *paths]
        # PyTorch has modules in the syntax of newer interpreters, which it imports only there: they stay uncompiled.
        subprocess.run([str(word) for word in command], env=os.environ | {"PYTHONHASHSEED": "0"}, check=False)


def lay_out_packages(site: Path, of_torch: Container[str]) -> None:
    """Move every package to its layer, and copy the metadata for the SBOM.

    Args:
        of_torch: PyTorch and its requirements, by far the largest part.
    """
    for distribution in distributions(path=[str(site)]):
        metadata = site / find_metadata(distribution)
        target = IMAGE / "metadata" / metadata.name
        target.mkdir(parents=True)
        shutil.copy2(metadata / "METADATA", target)
        layer = "tgis" if distribution.name == "tgis" else "torch" if distribution.name in of_torch else "packages"
        for file in list_files(distribution):
            move(file, IMAGE / layer)
    remove_empty_folders(HOME)
    move(HOME, IMAGE / "packages")
    licence = IMAGE / "tgis/licenses/LICENSE"
    licence.parent.mkdir(parents=True)
    shutil.copyfile(CONTEXT / "LICENSE", licence)


def find_metadata(distribution: Distribution) -> str:
    """The name of its .dist-info folder."""
    files = distribution.files or []
    return next(file.parts[0] for file in files if file.parts[0].endswith(".dist-info"))


def list_files(distribution: Distribution) -> Iterator[Path]:
    """The installed files of a distribution, with their bytecode."""
    for file in distribution.files or []:
        path = Path(os.path.normpath(str(distribution.locate_file(file))))
        if path.exists():
            yield path
        if path.suffix == ".py":
            yield from path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc")


def move(path: Path, layer: Path) -> None:
    """Move a file to a layer, or merge a folder into the one that the layer has already."""
    target = layer / path.relative_to("/")
    if path.is_dir() and not path.is_symlink() and target.is_dir():
        for part in path.iterdir():
            move(part, layer)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def remove_empty_folders(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        if not os.listdir(folder):
            os.rmdir(folder)


# -- the interpreter and what it needs


def find_standard_library() -> set[Path]:
    """The folders of the standard library: one, unless extensions have their own."""
    return {Path(os.__file__).parent.resolve(), Path(sysconfig.get_config_var("DESTSHARED")).parent.resolve()}


def copy_standard_library(root: Path) -> None:
    copy_with_links(find_base_python(), root)
    for library in find_standard_library():
        copy_folder(library, root, *UNWANTED_MODULES)
        compile_folders([root / library.relative_to("/")], strip=root)


def copy_libraries(root: Path, places: Iterable[Path]) -> None:
    """Copy the loader, and every shared library that a program or extension under these places loads."""
    python = find_base_python()
    loader = read_loader(python)
    copy_with_links(loader, root)
    files = [python, *(file for place in places for file in sorted(place.rglob("*.so*")) if is_elf(file))]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = {
            library for libraries in pool.map(lambda file: list_libraries(loader, file), files) for library in libraries
        }
    found |= set(find_loaded_later(found))
    for library in sorted(found):
        if not library.is_relative_to(HOME):
            copy_with_links(library, root)


def list_libraries(loader: Path, file: Path) -> list[Path]:
    """The libraries that the loader would load with a file. The GPU driver is not among them: the node brings it."""
    listed = subprocess.run([loader, "--list", file], capture_output=True, text=True, check=False).stdout
    return [Path(path) for path in re.findall(r"=> (/\S+) \(", listed)]


def find_loaded_later(libraries: Iterable[Path]) -> Iterator[Path]:
    """Libraries that others load by name at run time: glibc, to cancel threads and to look up hosts and users; and
    OpenSSL, which loads providers, without which it does nothing on machines in FIPS mode."""
    for folder in {library.parent for library in libraries}:
        for name in ("libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2", "ossl-modules/*.so"):
            yield from folder.glob(name)


def is_elf(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def read_loader(program: Path) -> Path:
    """The path of the loader in the header of a 64-bit program (ELF's PT_INTERP)."""
    content = program.read_bytes()
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, number = struct.unpack_from("<HH", content, 54)
    for start in range(offset, offset + size * number, size):
        kind, _, place, _, _, length = struct.unpack_from("<IIQQQQ", content, start)
        if kind == 3:
            return Path(content[place : place + length - 1].decode())
    sys.exit(f"{program} is linked statically: it cannot load extensions.")


def copy_system_files(root: Path) -> None:
    """Copy certificates and system settings, and create the users and the folders that every container has."""
    paths = ssl.get_default_verify_paths()
    settings = Path(paths.openssl_cafile).parent / "openssl.cnf"
    for path in (*SYSTEM_FILES, paths.openssl_cafile, paths.openssl_capath, str(settings)):
        if os.path.isdir(path):
            copy_folder(Path(path), root)
        elif os.path.exists(path):
            copy_with_links(Path(path), root)
    etc = root / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "passwd").write_text(f"root:x:0:0:root:/:/sbin/nologin\ntgis:x:{USER_ID}:0:TGIS:/tmp:/sbin/nologin\n")
    (etc / "group").write_text("root:x:0:\n")
    for name in ("dev", "proc", "run", "sys", "tmp", "var"):
        (root / name).mkdir(exist_ok=True)


def copy_with_links(path: Path, root: Path) -> None:
    """Copy a file to the same path below a root, and every symbolic link on the way to it."""
    current, parts = Path("/"), list(path.parts[1:])
    while parts:
        current /= parts.pop(0)
        if current.is_symlink():
            make_link(root / current.relative_to("/"), os.readlink(current))
            parts = [*Path(os.path.normpath(current.parent / os.readlink(current))).parts[1:], *parts]
            current = Path("/")
    target = root / current.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(current, target)


def make_link(link: Path, target: str) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target)


def copy_folder(folder: Path, root: Path, *unwanted: str) -> None:
    """Copy a folder with the content of its links; links that lead nowhere are left out."""
    target = root / folder.resolve().relative_to("/")
    ignore = shutil.ignore_patterns(*unwanted)
    shutil.copytree(folder, target, ignore=ignore, ignore_dangling_symlinks=True, dirs_exist_ok=True)
    for path in (*reversed(folder.parents), folder):
        if path.is_symlink():
            make_link(root / path.relative_to("/"), os.readlink(path))


# -- the end


def make_models(model: str) -> None:
    """Make /models with the baked-in model. Any user in group 0 may write to it if no volume is mounted there."""
    target = IMAGE / "model/models"
    target.mkdir(parents=True)
    if model:
        source = CONTEXT / model
        if not (source / "config.json").is_file():
            sys.exit(f"{model} of the build context is not a model: it has no config.json.")
        shutil.copytree(source, target / source.name)


def normalise(top: Path, seconds: int) -> None:
    """Give all files the same time, and modes that depend only on whether they can be executed."""
    for folder, folders, files in os.walk(top):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if not path.is_symlink():
                path.chmod(MODES.get(path.relative_to(top), 0o755 if os.access(path, os.X_OK) else 0o644))
            os.utime(path, (seconds, seconds), follow_symlinks=False)


if __name__ == "__main__":
    main(os.environ)
