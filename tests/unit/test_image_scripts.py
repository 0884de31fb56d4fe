"""How the image is built: where its packages come from, what the build context holds, and how layers are laid out.

`make image-test` builds the image and tries it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")
sys.path.insert(0, str(ROOT / "scripts/image"))
assemble, build, pip_settings, tools = map(importlib.import_module, ("assemble", "build", "pip_settings", "tools"))
sys.path.pop(0)


# -- pip's settings


def test_settings_that_say_where_packages_are_go_into_the_container():
    settings = pip_settings.translate(
        ":env:.disable-pip-version-check='1'\nglobal.index-url='https://me:word@mirror/simple'\nglobal.timeout='60'\n"
    )

    assert settings.text == "[global]\nindex-url = https://me:word@mirror/simple\ntimeout = 60\n"
    assert settings.secrets == {}
    assert settings.folders == []


def test_the_environment_overrides_pips_files_and_a_command_all_commands():
    listed = "global.timeout='1'\ninstall.timeout='2'\nglobal.retries='3'\n:env:.timeout='4'\n"

    assert pip_settings.translate(listed).text == "[global]\ntimeout = 4\nretries = 3\n"


def test_certificates_become_secrets():
    settings = pip_settings.translate("global.cert='/etc/ssl/site.pem'\nglobal.client-cert='/etc/ssl/me.pem'\n")

    assert settings.text == "[global]\ncert = /run/secrets/ca\nclient-cert = /run/secrets/client\n"
    assert settings.secrets == {"ca": Path("/etc/ssl/site.pem"), "client": Path("/etc/ssl/me.pem")}


def test_folders_of_this_machine_are_mounted_and_others_are_not(tmp_path: Path):
    wheels, index = tmp_path / "wheels", tmp_path / "index/simple"
    wheels.mkdir()
    index.mkdir(parents=True)

    settings = pip_settings.translate(
        f"global.find-links='{wheels}\\n/no/such/folder'\nglobal.extra-index-url='file://{index} https://mirror/simple'\n"
    )

    assert settings.folders == [tmp_path / "index", wheels]


# -- the programs that build


def make_build(**fields: object) -> object:
    defaults = {
        "context": Path("/c"),
        "arguments": {"TORCH": "cpu"},
        "secrets": {"pip": Path("/p")},
        "folders": [],
        "seconds": 5,
    }
    return tools.Build(**defaults | fields)


@pytest.mark.parametrize("tool", ["podman", "buildah"])
def test_podman_and_buildah_mount_folders_and_fix_the_time(tool: str):
    command = tools.make_command(tool, make_build(folders=[Path("/w")]))

    assert " ".join(map(str, command)) == (
        f"{tool} build --file /c/Containerfile --build-arg TORCH=cpu --build-arg SOURCE_DATE_EPOCH=5"
        " --secret id=pip,src=/p --volume /w:/w:ro --layers --timestamp 5"
    )


def test_docker_fixes_the_time_by_itself():
    command = tools.make_command("docker", make_build())

    assert " ".join(map(str, command)) == (
        "docker build --file /c/Containerfile --build-arg TORCH=cpu --build-arg SOURCE_DATE_EPOCH=5"
        " --secret id=pip,src=/p"
    )


def test_docker_cannot_mount_folders():
    with pytest.raises(ValueError, match=r"^pip's settings on this machine name /w and /x, which docker cannot mount"):
        tools.make_command("docker", make_build(folders=[Path("/w"), Path("/x")]))


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        (["docker", "buildah", "podman"], "podman"),
        (["docker", "buildah"], "buildah"),
        (["docker"], "docker"),
        ([], None),
    ],
)
def test_the_first_program_that_is_installed_builds(installed: list[str], chosen: str | None, monkeypatch):
    monkeypatch.setattr(tools.shutil, "which", lambda name: f"/usr/bin/{name}" if name in installed else None)

    assert tools.find_tool() == chosen


# -- make build


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is built in place of the wheel; umask and caches stay as they are."""
    file = ROOT / "dist/tgis-0.1.0-py3-none-linux_x86_64.whl"
    monkeypatch.setattr(build, "build_wheel", lambda seconds: file)
    monkeypatch.setattr(build, "CACHE", tmp_path)
    monkeypatch.setattr(build.os, "umask", lambda mask: 0)
    return file


@pytest.mark.usefixtures("wheel")
def test_without_a_program_the_wheel_is_built_and_the_exit_code_says_so(monkeypatch, capsys):
    monkeypatch.setattr(build, "find_tool", lambda: None)

    assert build.main([]) == 3

    out, err = capsys.readouterr()
    assert out == "Built dist/tgis-0.1.0-py3-none-linux_x86_64.whl\n"
    assert err == "No image was built: install one of podman, buildah, docker, or give --wheel-only.\n"


@pytest.mark.usefixtures("wheel")
def test_the_wheel_alone_is_a_success_when_it_is_wanted(capsys):
    assert build.main(["--wheel-only"]) == 0


@pytest.mark.usefixtures("wheel")
def test_a_wheel_without_compiled_operations_is_pointed_out(monkeypatch, capsys):
    monkeypatch.setattr(build, "build_wheel", lambda seconds: ROOT / "dist/tgis-0.1.0-py3-none-any.whl")

    assert build.main(["--wheel-only"]) == 0

    assert capsys.readouterr().err == ("It has no compiled operations for CPUs: build on x86-64 with g++ or clang++.\n")


@pytest.mark.parametrize("option", ["--wheels", "--model"])
@pytest.mark.usefixtures("wheel")
def test_a_folder_that_is_missing_is_named_before_anything_is_built(option: str, capsys):
    assert build.main([option, "/no/such"]) == 2

    assert capsys.readouterr().err == "/no/such is not a folder.\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "{tmp_path}"], "{tmp_path} is not a model: it has no config.json."),
        (["--extras", "tracing,nope"], "There is no extra nope; the wheel has tracing, guided, convert, dev."),
        (["--tool", "docker"], "docker is not installed; --tool can be podman."),
    ],
)
@pytest.mark.usefixtures("wheel")
def test_what_would_fail_later_is_refused_before_anything_is_built(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build.shutil, "which", lambda name: "/usr/bin/podman" if name == "podman" else None)

    assert build.main([each.format(tmp_path=tmp_path) for each in arguments]) == 2

    out, err = capsys.readouterr()
    assert (out, err) == ("", sentence.format(tmp_path=tmp_path) + "\n")


def test_the_context_holds_only_what_the_image_needs(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("TMPDIR", raising=False)
    wheel = tmp_path / "tgis-1-py3-none-any.whl"
    weights = tmp_path / "tiny/model.safetensors"
    weights.parent.mkdir()
    for file in (wheel, weights):
        file.write_text("x")
    (weights.parent / "config.json").symlink_to(weights)  # as in a hub cache

    with build.collect_context(wheel, None, weights.parent) as context:
        found = {
            str(path.relative_to(context)) for path in context.rglob("*") if path.is_file() and not path.is_symlink()
        }

    assert found == {
        *build.CONTEXT_FILES,
        f"dist/{wheel.name}",
        "model/tiny/config.json",
        "model/tiny/model.safetensors",
    }
    assert list((tmp_path / "cache").iterdir()) == []


def test_building_by_hand_sees_the_same_files():
    seen = {
        line[1:].strip("/") for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")
    }

    assert seen == {*build.CONTEXT_FILES, "dist/*.whl", "model", "wheels"} - {"Containerfile"}
    assert (ROOT / ".dockerignore").resolve() == ROOT / ".containerignore"


def test_a_changed_context_has_another_digest(tmp_path: Path):
    file = tmp_path / "dist/a.whl"
    file.parent.mkdir()
    file.write_text("1")
    before = build.digest_inputs(tmp_path, "")
    file.write_text("2")

    assert len({before, build.digest_inputs(tmp_path, ""), build.digest_inputs(tmp_path, "[global]")}) == 3


# -- inside the build container


class FakePip:
    """Installs a package `torch`, if one of its sources has that build."""

    def __init__(
        self, site: Path, *, has: str, cuda: str = "None", error: str = "No matching distribution found"
    ) -> None:
        self.commands: list[str] = []
        self._site, self._has, self._cuda, self._error = site, has, cuda, error

    def install(self, *words: str) -> None:
        self.commands.append(" ".join(words))
        if self._has not in self.commands[-1]:
            raise subprocess.CalledProcessError(1, "pip", self._error)
        (self._site / "torch").mkdir(parents=True)
        (self._site / "torch/version.py").write_text(f"cuda: str | None = {self._cuda}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages of a virtual environment, with a context that pins PyTorch."""
    monkeypatch.setattr(assemble, "HOME", tmp_path / "opt")
    monkeypatch.setattr(assemble, "CONTEXT", tmp_path)
    monkeypatch.setattr(assemble, "IMAGE", tmp_path / "image")
    (tmp_path / "constraints.txt").write_text("torchmetrics==1.0\ntorch==2.13.0\n")
    (tmp_path / "LICENSE").write_text("licence")
    folder = tmp_path / "opt/lib/python3/site-packages"
    folder.mkdir(parents=True)
    return folder


CPU_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu"


@pytest.mark.parametrize(
    ("build_of_torch", "cuda", "has", "commands"),
    [
        ("cpu", "None", "torch==2.13.0+cpu", ["torch==2.13.0+cpu"]),
        ("cpu", "None", "whl/cpu", ["torch==2.13.0+cpu", CPU_INDEX]),
        ("cuda", "'13.0'", "torch==2.13.0", ["torch==2.13.0"]),
    ],
)
def test_pytorch_comes_from_pips_sources_first(site: Path, build_of_torch, cuda, has, commands):
    pip = FakePip(site, has=has, cuda=cuda)

    assemble.install_torch(pip, build_of_torch)

    assert pip.commands == commands


def test_another_failure_of_pip_is_final(site: Path):
    pip = FakePip(site, has="nothing", error="No space left on device")

    with pytest.raises(subprocess.CalledProcessError):
        assemble.install_torch(pip, "cpu")

    assert pip.commands == ["torch==2.13.0+cpu"]


@pytest.mark.parametrize(("build_of_torch", "cuda"), [("cpu", "'13.0'"), ("cuda", "None")])
def test_another_build_of_pytorch_than_wanted_is_refused(site: Path, build_of_torch: str, cuda: str):
    with pytest.raises(SystemExit, match=f"another build of PyTorch than TORCH={build_of_torch}"):
        assemble.install_torch(FakePip(site, has="torch", cuda=cuda), build_of_torch)


@pytest.mark.parametrize("names", [[], ["tgis-1-a.whl", "tgis-1-b.whl"]])
def test_the_context_must_have_one_wheel(site: Path, names: list[str]):
    (assemble.CONTEXT / "dist").mkdir()
    for name in names:
        (assemble.CONTEXT / "dist" / name).touch()

    with pytest.raises(SystemExit, match=f"must hold one wheel of TGIS 1, and holds {len(names)}"):
        assemble.find_wheel("1")


def install(site: Path, name: str, *files: str) -> None:
    """Lay out a package as pip does."""
    metadata = f"{name}-1.dist-info"
    everything = (*files, f"{metadata}/METADATA", f"{metadata}/RECORD", f"{metadata}/direct_url.json")
    for file in everything:
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Name: {name}\nVersion: 1\n")
    (site / metadata / "RECORD").write_text("".join(f"{file},,\n" for file in everything))


def test_each_package_gets_to_its_layer_without_tests_and_other_programs(site: Path):
    programs = assemble.HOME / "bin"
    install(site, "torch", "torch/__init__.py", "torch/include/a.h", "shared/torch.py", "../../../bin/torchrun")
    install(site, "tgis", "tgis_cli/__init__.py", "../../../bin/tgis")
    install(site, "other", "other.py", "shared/other.py", "other/tests/test.py")
    (programs / "python").touch()
    (programs / "python3").touch()

    assemble.tidy(site)
    assemble.lay_out_packages(site, {"torch"})

    place = site.relative_to("/")
    layers = {
        str(path.relative_to(assemble.IMAGE)).replace(str(place), "SITE").replace(str(programs)[1:], "BIN")
        for path in assemble.IMAGE.rglob("*")
        if path.is_file()
    }
    assert {path for path in layers if "dist-info" not in path} == {
        "torch/SITE/torch/__init__.py",
        "torch/SITE/shared/torch.py",
        "tgis/SITE/tgis_cli/__init__.py",
        "tgis/BIN/tgis",
        "tgis/licenses/LICENSE",
        "packages/SITE/other.py",
        "packages/SITE/shared/other.py",
        "packages/BIN/python",
        "packages/BIN/python3",
    }
    assert {path for path in layers if path.startswith("metadata")} == {
        f"metadata/{name}-1.dist-info/METADATA" for name in ("torch", "tgis", "other")
    }
    (torch,) = distributions(path=[str(assemble.IMAGE / "torch" / place)])
    assert sorted(map(str, torch.files)) == [
        *("shared/torch.py", "torch-1.dist-info/METADATA", "torch-1.dist-info/RECORD", "torch/__init__.py"),
    ]


def test_a_library_is_copied_with_every_link_on_the_way_to_it(tmp_path: Path):
    base, root = tmp_path / "base", tmp_path / "root"
    (base / "usr/lib").mkdir(parents=True)
    (base / "usr/lib/libx.so.1.2").write_text("library")
    (base / "usr/lib/libx.so.1").symlink_to("libx.so.1.2")
    (base / "lib").symlink_to("usr/lib")

    assemble.copy_with_links(base / "lib/libx.so.1", root)

    copied = root / base.relative_to("/")
    assert os.readlink(copied / "lib") == "usr/lib"
    assert os.readlink(copied / "usr/lib/libx.so.1") == "libx.so.1.2"
    assert (copied / "lib/libx.so.1").read_text() == "library"


def test_the_loader_and_the_libraries_of_the_interpreter_are_found():
    python = Path(sys.executable).resolve()
    loader = assemble.read_loader(python)

    assert loader.name.startswith("ld-linux")
    assert any(library.name == "libc.so.6" for library in assemble.list_libraries(loader, python))


def test_modes_and_times_do_not_depend_on_the_building_machine(tmp_path: Path):
    for name, mode in (("program", 0o4711), ("data", 0o666), ("models", 0o700)):
        (tmp_path / name).touch() if name != "models" else (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)

    assemble.normalise(tmp_path, 7)

    found = {path.name: (oct(path.stat().st_mode & 0o7777), path.stat().st_mtime) for path in tmp_path.iterdir()}
    assert found == {"program": ("0o755", 7), "data": ("0o644", 7), "models": ("0o775", 7)}


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say_about_the_containerfile():
    done = subprocess.run([HADOLINT, ROOT / "Containerfile"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")
