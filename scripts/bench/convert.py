"""Time and memory of converting PyTorch weights to safetensors, compared with copying the same files.

::

    python scripts/bench/convert.py [--gib 2] [--files 2] [--rounds 3] [--dir DIR]

Prints medians of rounds in which copying and conversion alternate, and the ratio of the two speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tgis_server.host.interpreter import make_command, make_environment

MIB = 1 << 20


def make_checkpoint(directory: Path, total_bytes: int, num_files: int) -> None:
    """Write random bf16 tensors of typical sizes, in a separate process so that its memory is not measured."""
    program = (
        "import torch, sys, json\n"
        "directory, total, num_files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "rows = 4096\n"
        "count = total // num_files // (rows * rows * 2)\n"
        "weight_map = {}\n"
        "for number in range(num_files):\n"
        "    name = 'pytorch_model.bin' if num_files == 1 else "
        "f'pytorch_model-{number + 1:05}-of-{num_files:05}.bin'\n"
        "    tensors = {f'layers.{number}.{i}.weight': torch.randn(rows, rows).bfloat16() for i in range(count)}\n"
        "    weight_map |= dict.fromkeys(tensors, name)\n"
        "    torch.save(tensors, f'{directory}/{name}')\n"
        "if num_files > 1:\n"
        "    json.dump({'weight_map': weight_map}, open(f'{directory}/pytorch_model.bin.index.json', 'w'))\n"
    )
    command = make_command("-c", program, str(directory), str(total_bytes), str(num_files))
    subprocess.run(command, env=make_environment(os.environ), check=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')


def copy(directory: Path, *, sync: bool) -> None:
    for source in directory.glob("*.bin"):
        target = source.with_suffix(".copy")
        shutil.copyfile(source, target)
        if sync:
            with target.open("rb") as file:
                os.fsync(file.fileno())


def convert(directory: Path) -> int:
    """Convert in a separate process; return its peak memory in bytes."""
    program = (
        "import resource, sys\n"
        "from tgis_cli.app import main\n"
        "sys.argv = ['tgis', 'convert-to-safetensors', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    command, environ = make_command("-c", program, str(directory)), make_environment(os.environ)
    result = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return int(result.stdout.splitlines()[-1])


def timed(work: Callable[[], object], directory: Path, ending: str) -> float:
    for old in directory.glob(f"*{ending}*"):
        old.unlink()
    os.sync()
    started_at = time.monotonic()
    work()
    return time.monotonic() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=None, help="where to put the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        directory = Path(name)
        make_checkpoint(directory, int(options.gib * (1 << 30)), options.files)
        sizes = [path.stat().st_size for path in directory.glob("*.bin")]
        times: dict[str, list[float]] = {"copy": [], "copy and fsync": [], "convert": []}
        peaks: list[int] = []
        for _ in range(options.rounds):
            times["copy"].append(timed(lambda: copy(directory, sync=False), directory, ".copy"))
            times["copy and fsync"].append(timed(lambda: copy(directory, sync=True), directory, ".copy"))
            times["convert"].append(timed(lambda: peaks.append(convert(directory)), directory, ".safetensors"))
        medians = {what: statistics.median(values) for what, values in times.items()}
    print(f"{sum(sizes) / MIB:.0f} MiB in {len(sizes)} files, medians of {options.rounds} rounds")
    for what, median_s in medians.items():
        print(f"  {what:<16} {median_s:6.2f} s  {sum(sizes) / MIB / median_s:6.0f} MiB/s")
    for what in ("copy", "copy and fsync"):
        print(f"  speed of conversion relative to {what}: {medians[what] / medians['convert']:.2f}")
    print(f"  peak memory {max(peaks) / MIB:.0f} MiB = {max(peaks) / max(sizes):.2f} x the largest file")
    print(json.dumps({"medians_s": medians, "peak_bytes": max(peaks), "largest_bytes": max(sizes)}))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
