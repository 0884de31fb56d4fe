"""Puts the compiled CPU operations into the wheel, for all instruction sets, if this machine can compile them.

Elsewhere the wheel is pure, and the operations are compiled at the first start. pyproject.toml has everything else.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "server"))

from tgis_server.engines.native.ops.cpu import build, instruction_sets

LIBRARY = build.SOURCES.with_name("libtgis_cpu.so").relative_to(Path(__file__).parent / "server")


class BuildPython(build_py):
    """Also compiles, but not for an editable installation, whose sources may change."""

    def run(self) -> None:
        super().run()
        if self.editable_mode or sysconfig.get_platform() != "linux-x86_64":
            return
        try:
            compiler = build.find_compiler(os.environ)
            library = Path(self.build_lib, LIBRARY).absolute()
            build.compile_library(library, compiler, instruction_sets.ALL, lambda *_: None, os.environ)
        except build.CannotBuild as error:
            self.warn(f"The wheel has no compiled operations for CPUs: {error}.")


class Wheel(bdist_wheel):
    """A wheel for this platform, and any Python, if it has the library."""

    def get_tag(self) -> tuple[str, str, str]:
        if Path(self.get_finalized_command("build").build_lib, LIBRARY).exists():
            return "py3", "none", sysconfig.get_platform().replace("-", "_")
        return super().get_tag()


setup(cmdclass={"build_py": BuildPython, "bdist_wheel": Wheel})
