"""Regenerate the checked-in gRPC stubs from proto/. Usage: python scripts/generate_stubs.py [--output DIR]

grpcio-tools is pinned (see pyproject.toml): generated code refuses runtimes older than its generator, so the oldest
generator that still works serves the most installations.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "server" / "tgis_server" / "wire"
PROTOS = ("generation.proto", "shard.proto")


def generate(output: Path) -> list[Path]:
    """Write ``*_pb2.py``, ``*_pb2.pyi`` and ``*_pb2_grpc.py`` into ``output``, and return the files."""
    from grpc_tools import protoc

    output.mkdir(parents=True, exist_ok=True)
    well_known = str(resources.files("grpc_tools") / "_proto")
    arguments = [f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    arguments += [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *arguments, *PROTOS]) != 0:
        sys.exit("protoc failed")
    written = sorted(output.glob("*_pb2*.py*"))
    for file in written:  # import from our package instead of the top level
        text = re.sub(r"^import (\w+_pb2) as", r"from tgis_server.wire import \1 as", file.read_text(), flags=re.M)
        file.write_text(text)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=TARGET)
    for file in generate(parser.parse_args().output):
        print(file)


if __name__ == "__main__":
    main()
