"""The instruction sets that the compiled operations have kernels for, and those that this CPU runs. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tgis_server.errors import UsageError
from tgis_server.host.cpu_flags import CPUINFO, read_cpu_flags

AUTO, REFERENCE = "auto", "reference"


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """An instruction set, by its names in the kernel's list of flags."""

    name: str
    flags: tuple[str, ...]

    @property
    def compiler_flags(self) -> tuple[str, ...]:
        return (f"-DTGIS_ISA={self.name}", *(f"-m{flag.replace('_', '')}" for flag in self.flags))


AVX2 = InstructionSet("avx2", ("avx2", "fma"))
AVX512 = InstructionSet("avx512", ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"))
AVX512_BF16 = InstructionSet("avx512_bf16", (*AVX512.flags, "avx512_bf16"))
ALL = (AVX512_BF16, AVX512, AVX2)  # the best first


def find_usable(cpuinfo: Path = CPUINFO) -> tuple[InstructionSet, ...]:
    """The sets that this CPU runs, the best first."""
    flags = read_cpu_flags(cpuinfo) or frozenset()
    return tuple(each for each in ALL if flags.issuperset(each.flags))


def choose_sets(choice: str, cpuinfo: Path = CPUINFO) -> tuple[InstructionSet, ...]:
    """The sets that may be used, the best first: those that this CPU runs, from the chosen one down.

    Raises:
        UsageError: this CPU does not run the chosen one.
    """
    usable = find_usable(cpuinfo)
    if choice == REFERENCE:
        return ()
    names = [each.name for each in usable]
    if choice != AUTO and choice not in names:
        can = f"runs only {' and '.join(names)}" if names else "has neither AVX2 nor AVX-512"
        raise UsageError(f"--cpu-ops is {choice}, but this CPU {can}; use {', '.join((AUTO, REFERENCE, *names))}.")
    return usable if choice == AUTO else usable[names.index(choice) :]
