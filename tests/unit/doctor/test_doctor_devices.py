"""The doctor's checks of GPUs, their driver, and CPUs."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from doctor_subject import GIB, GPUS, complaints, judge, make_subject, with_versions
from nvml_fake import Board, FakeNvml
from tgis_cli.doctor.devices import (
    check_cpu_ops,
    check_cpus,
    check_devices,
    check_driver,
    check_gpu_use,
    check_visible_devices,
)
from tgis_cli.doctor.verdict import Host
from tgis_cli.machine import Cpu, Gpu
from tgis_server.engines.door import CpuOps

DRIVER = "driver 570.86.10 for CUDA 12.8"


class BusyNvml(FakeNvml):
    """A fake driver whose GPUs are in use."""

    def __init__(self, *boards: Board, pids: tuple[int, ...] = (), ecc: int | None = 0) -> None:
        super().__init__(*boards)
        self.pids, self.ecc = pids, ecc

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Board:  # noqa: N802  pynvml's name, as all below
        return next(board for board in self.boards if board.uuid == uuid)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Board) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=3 * GIB) for pid in self.pids]

    def nvmlDeviceGetTotalEccErrors(self, handle: Board, kind: int, counter: int) -> int:  # noqa: N802
        if self.ecc is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.ecc


def test_the_busy_driver_has_the_functions_of_the_real_one():
    assert [name for name in vars(BusyNvml) if name.startswith("nvml") and not hasattr(pynvml, name)] == []


def test_without_a_gpu_models_run_on_the_cpu():
    assert judge(check_devices, make_subject()) == [("ok", "Models run on the CPU: no GPU is visible.")]


def test_gpus_are_listed_with_their_free_memory():
    assert judge(check_devices, make_subject(gpus=GPUS[:1], driver=DRIVER)) == [
        ("ok", f"Models run on 1 GPU: 1 GPU visible: NVIDIA H100; {DRIVER}."),
        ("ok", "GPU-aa11: NVIDIA H100, 79.0 GiB of 80.0 GiB free."),
    ]


def test_a_requested_gpu_that_is_missing_is_a_failure():
    ((level, sentence),) = judge(check_devices, make_subject(device="cuda"))

    assert level == "fail"
    assert sentence.startswith("--device cuda is given, but no GPU is visible. See `nvidia-smi`")


def test_a_cpu_build_of_torch_on_a_machine_with_gpus_is_a_warning():
    (warning,) = complaints(check_devices, make_subject(gpus=GPUS, torch_has_cuda=False))

    assert warning == "GPUs are visible but not used: the installed torch is built for CPUs."


def test_lists_of_devices_are_shown_as_understood():
    subject = make_subject({"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "all"})

    assert judge(check_visible_devices, subject) == [
        ("ok", "CUDA_VISIBLE_DEVICES is '': no GPUs."),
        ("ok", "NVIDIA_VISIBLE_DEVICES is 'all': all GPUs."),
    ]


# -- driver


def drive(driver: str, **versions: str) -> list[tuple[str, str]]:
    return judge(check_driver, make_subject(gpus=GPUS, driver=driver, host=with_versions(**versions)))


def test_a_driver_for_an_older_cuda_than_torchs_is_a_failure():
    assert drive(DRIVER, torch="2.11.0+cu130") == [
        (
            "fail",
            f"launcher: the NVIDIA driver is too old for the installed torch ({DRIVER}, and torch is built for CUDA "
            "13.0, which needs driver 580.65 or newer): update the driver, or install a build of torch for an older "
            "CUDA.",
        )
    ]


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"torch": "2.11.0+cu128"}, "torch is built for CUDA 12.8."),
        ({"torch": "2.11.0+cu118"}, "torch is built for CUDA 11.8."),
        ({"torch": "2.11.0+cu129"}, "torch is built for CUDA 12.9, which works because minor versions are compatible."),
        ({"torch": "2.11.0", "nvidia_cuda_runtime_cu12": "12.6.77"}, "torch is built for CUDA 12.6."),
    ],
)
def test_a_driver_for_the_same_or_a_later_major_cuda_is_fine(versions: dict[str, str], words: str):
    assert drive(DRIVER, **versions) == [("ok", f"The GPUs have {DRIVER}, and {words}")]


def test_a_gpu_that_torchs_cuda_does_not_support_is_a_failure():
    gpus = (Gpu("GPU-aa11", "Tesla V100", capability=(7, 0)), Gpu("GPU-bb22", "Tesla K80", capability=(3, 7)))
    driver = "driver 580.65 for CUDA 13.0"
    subject = make_subject(gpus=gpus, driver=driver, host=with_versions(torch="2.11.0+cu130"), num_shard="1")

    assert complaints(check_driver, subject) == [
        "launcher: the installed torch has no code for this GPU (Tesla V100 has compute capability 7.0, but CUDA 13.0 "
        "needs 7.5 or newer): install a build of torch that supports it, or use a different GPU."
    ]


def test_the_driver_is_not_judged_if_torchs_cuda_is_unknown():
    assert drive(DRIVER, torch="2.11.0") == []


def test_the_driver_does_not_matter_if_no_gpu_is_used():
    host = with_versions(torch="2.11.0+cu130")

    assert judge(check_driver, make_subject(gpus=GPUS, driver=DRIVER, host=host, device="cpu")) == []


# -- use


def use(nvml: FakeNvml, gpu: Gpu) -> list[str]:
    return complaints(check_gpu_use, make_subject(gpus=(gpu,), host=Host(nvml=nvml)))


def test_an_unused_gpu_without_errors_gets_no_verdict():
    nvml = BusyNvml(Board("GPU-aa11"), ecc=None)

    assert use(nvml, GPUS[0]) == []
    assert nvml.num_open == 0


def test_the_processes_that_use_a_gpus_memory_are_named():
    nvml = BusyNvml(Board("GPU-aa11"), pids=(os.getpid(), 1 << 30))

    (warning,) = use(nvml, replace(GPUS[0], free_bytes=40 * GIB))

    assert warning.startswith("GPU-aa11 has 40.0 GiB of 80.0 GiB free; the rest is used by ")
    assert f"(pid {os.getpid()}, 3.0 GiB), a process of another container or user (pid {1 << 30}, 3.0 GiB)." in warning
    assert warning.endswith("Stop those processes, or choose other GPUs with CUDA_VISIBLE_DEVICES.")


def test_memory_errors_of_a_gpu_are_a_warning():
    assert use(BusyNvml(Board("GPU-aa11"), ecc=2), GPUS[0]) == [
        "GPU-aa11 has had 2 memory errors that ECC could not correct since the driver was loaded. Reset or replace it: "
        "see `nvidia-smi -q -d ECC`."
    ]


def test_without_a_driver_the_use_of_gpus_is_unknown():
    assert use(FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), GPUS[0]) == []


# -- CPUs


def test_cpus_are_counted_with_cores_and_quota():
    subject = make_subject(cpus=(Cpu(0, 0), Cpu(1, 0), Cpu(2, 2), Cpu(3, 2)), cpu_quota=2.5, has_bf16=False)

    assert judge(check_cpus, subject) == [
        ("ok", "4 CPUs (2 cores), of which the control group allows 2.5; 2 are used, without bf16 instructions.")
    ]


def test_less_than_one_cpu_is_a_warning():
    assert judge(check_cpus, make_subject(cpu_quota=0.5)) == [
        (
            "warn",
            "The control group allows 0.5 CPUs: all threads are paused for 50% of the time. Raise the CPU limit to 1 "
            "or more.",
        )
    ]


# -- operations on the CPU


@pytest.mark.parametrize(
    ("found", "values", "expected"),
    [
        (
            CpuOps("cached", "avx2", "compiled earlier"),
            {},
            [("ok", "Operations for avx2 are used (compiled earlier).")],
        ),
        (
            CpuOps("reference", "", "there is no C++ compiler"),
            {},
            [("warn", "The slower torch operations are used: there is no C++ compiler.")],
        ),
        (
            CpuOps("reference", "", "--cpu-ops is reference"),
            {"cpu_ops": "reference"},
            [("ok", "The slower torch operations are used: --cpu-ops is reference.")],
        ),
        (CpuOps("reference", "", "unused"), {"gpus": GPUS}, []),
    ],
)
def test_slow_operations_on_the_cpu_are_a_warning_unless_they_are_wanted(
    found: CpuOps, values: dict[str, Any], expected: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tgis_server.engines.native.door.describe_cpu_ops", lambda *_: found)

    assert judge(check_cpu_ops, make_subject(**values)) == expected


def test_operations_that_this_cpu_does_not_run_would_end_startup(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tgis_server.engines.native.ops.cpu.instruction_sets.find_usable", lambda cpuinfo: ())

    ((level, sentence),) = judge(check_cpu_ops, make_subject(cpu_ops="avx2"))

    assert level == "fail"
    assert sentence.startswith("--cpu-ops is avx2, but this CPU has neither AVX2 nor AVX-512")
