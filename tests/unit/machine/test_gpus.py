"""The GPUs that a server may use: the driver's answers, MIG, device files, and the variables that select GPUs."""

from __future__ import annotations

import threading
from pathlib import Path

import pynvml
import pytest

from nvml_fake import GIB, Board, FakeNvml, Instance
from tgis_cli.machine import gpus
from tgis_cli.machine.gpus import Gpu, GpuReport, find_gpus, list_installed_gpus, split_devices

PLAIN = (Board("GPU-aa11"), Board("GPU-ab22"))
SLICED = (
    Board("GPU-aa11", instances=[Instance("MIG-c1", 1), None, Instance("MIG-c2", 2)]),
    Board("GPU-ab22", instances=[Instance("MIG-d1", 1)]),
)


def find_with(visible: str | None, *boards: Board) -> GpuReport:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return find_gpus(environ, lambda: list_installed_gpus(FakeNvml(*boards)))


def devices(report: GpuReport) -> list[str]:
    return [gpu.device for gpu in report.gpus]


# -- the driver's answers


def test_a_gpu_is_described_by_the_driver():
    board = Board("GPU-aa11", "NVIDIA H200", 140 * GIB, 139 * GIB, cpu_words=(0b1011, 0b1), capability=(9, 0))
    nvml = FakeNvml(board)

    report = list_installed_gpus(nvml)

    assert report == GpuReport(
        (Gpu("GPU-aa11", "NVIDIA H200", 140 * GIB, 139 * GIB, frozenset({0, 1, 3, 64}), capability=(9, 0)),),
        "driver 570.86.10 for CUDA 12.8",
    )
    assert nvml.num_open == 0


def test_the_fake_driver_has_the_functions_of_the_real_one():
    assert [name for name in vars(FakeNvml) if name.startswith("nvml") and not hasattr(pynvml, name)] == []


def test_facts_that_a_gpu_does_not_report_are_unknown():
    gpu = list_installed_gpus(FakeNvml(Board("GPU-aa11", total_bytes=0))).gpus[0]

    assert (gpu.total_bytes, gpu.free_bytes, gpu.cpus) == (0, 0, frozenset())


def test_a_hanging_driver_is_given_up_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(gpus, "NOTE_AFTER_S", 0.01)
    monkeypatch.setattr(gpus, "GIVE_UP_AFTER_S", 0.02)
    may_end = threading.Event()

    report = find_gpus({}, lambda: may_end.wait() and GpuReport())
    may_end.set()

    assert report.gpus == ()
    assert report.problem.startswith("No GPU can be used: the NVIDIA driver has not answered for 0 s (see `dmesg`")
    assert "has not answered for 0 s: waiting for it" in caplog.text


def test_an_error_while_querying_the_driver_is_raised_to_the_caller():
    def fail() -> GpuReport:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        find_gpus({}, fail)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "installed but not loaded"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "this user may not open /dev/nvidia*"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "library and kernel module have different versions (reboot"),
        (pynvml.NVML_ERROR_UNKNOWN, "the NVIDIA driver says: Unknown Error"),
    ],
)
def test_a_driver_error_is_a_problem_in_words(error: int, words: str):
    report = list_installed_gpus(FakeNvml(init_error=error))

    assert report.gpus == ()
    assert report.problem.startswith("No GPU can be used: ")
    assert words in report.problem


def test_a_gpu_that_may_not_be_opened_is_left_out_and_the_others_are_counted_from_0():
    report = find_with("0", Board("GPU-no", error=pynvml.NVML_ERROR_NO_PERMISSION), Board("GPU-yes"))

    assert devices(report) == ["GPU-yes"]
    assert report.problem.startswith("GPU 0 is left out: this user may not open /dev/nvidia*")


# -- device files, if the driver's library is missing


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A device directory with two GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    return tmp_path


def count_files(dev: Path) -> GpuReport:
    return list_installed_gpus(FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), dev)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1"]),
        ("1,0", ["1", "0"]),
        ("0,7,1", ["0"]),
        ("GPU-8f1a", ["GPU-8f1a"]),
        ("first", []),
    ],
)
def test_gpus_known_only_by_device_files_are_named_by_index(dev: Path, visible: str | None, expected: list[str]):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    assert devices(find_gpus(environ, lambda: count_files(dev))) == expected


def test_a_device_file_that_may_not_be_opened_is_a_problem(dev: Path):
    (dev / "nvidia2").symlink_to(dev / "gone")  # not even root may open this one

    report = count_files(dev)

    assert len(report.gpus) == 2
    assert report.problem.startswith(f"1 of 3 GPUs cannot be used: this user may not open {dev}/nvidia2")


def test_a_machine_without_device_files_has_no_gpus(tmp_path: Path):
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "0"}, lambda: count_files(tmp_path)) == GpuReport()


# -- CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa11", "GPU-ab22"]),
        ("all", ["GPU-aa11", "GPU-ab22"]),
        ("1", ["GPU-ab22"]),
        ("1,0", ["GPU-ab22", "GPU-aa11"]),
        ("GPU-ab22", ["GPU-ab22"]),
        ("GPU-ab", ["GPU-ab22"]),
        ("GPU-ab, 0", ["GPU-ab22", "GPU-aa11"]),
        ("1,-1,0", ["GPU-ab22"]),
    ],
)
def test_gpus_are_listed_by_uuid_in_the_requested_order(visible: str | None, expected: list[str]):
    report = find_with(visible, *PLAIN)

    assert (devices(report), report.problem) == (expected, "")


@pytest.mark.parametrize(
    ("visible", "expected", "culprit"),
    [("0,7,1", ["GPU-aa11"], "7"), ("GPU-a", [], "GPU-a"), ("MIG-c1", [], "MIG-c1"), ("gpu0", [], "gpu0")],
)
def test_an_unknown_gpu_ends_the_list_and_is_named(visible: str, expected: list[str], culprit: str):
    report = find_with(visible, *PLAIN)

    assert devices(report) == expected
    assert report.problem.startswith(f"CUDA_VISIBLE_DEVICES names {culprit}, which is not exactly one usable GPU")


@pytest.mark.parametrize("visible", ["0,0", "1,GPU-ab22", "GPU-ab,GPU-ab22"])
def test_a_gpu_that_is_listed_twice_hides_all_gpus(visible: str):
    report = find_with(visible, *PLAIN)

    assert report.gpus == ()
    assert "a GPU that it already names, so CUDA shows no GPU" in report.problem


@pytest.mark.parametrize("visible", ["", " ", "none", "NoDevFiles", "void", "-1", "-1,0"])
def test_without_a_visible_gpu_the_driver_is_not_queried(visible: str):
    def fail() -> GpuReport:
        raise AssertionError("the driver was queried")

    assert find_gpus({"CUDA_VISIBLE_DEVICES": visible}, fail) == GpuReport()


def test_the_list_of_a_container_is_not_applied_again():
    report = find_gpus({"NVIDIA_VISIBLE_DEVICES": "3,4"}, lambda: list_installed_gpus(FakeNvml(*PLAIN)))

    assert devices(report) == ["GPU-aa11", "GPU-ab22"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("all", None),
        ("ALL", None),
        ("0,1", ["0", "1"]),
        ("0, GPU-x ,", ["0", "GPU-x"]),
        ("0,-1,1", ["0"]),
        ("none", []),
        ("", []),
    ],
)
def test_a_list_of_devices_is_split(value: str | None, expected: list[str] | None):
    assert split_devices(value) == expected


# -- MIG


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["MIG-c1", "MIG-c2", "MIG-d1"]),
        ("0,1", ["MIG-c1", "MIG-d1"]),
        ("GPU-ab22", ["MIG-d1"]),
        ("MIG-d1,MIG-c2", ["MIG-d1", "MIG-c2"]),
        ("MIG-GPU-aa11/2/0", ["MIG-c2"]),
    ],
)
def test_in_mig_mode_instances_replace_their_gpus(visible: str | None, expected: list[str]):
    report = find_with(visible, *SLICED)

    assert (devices(report), report.problem) == (expected, "")


def test_an_instance_has_its_own_memory_and_the_cpus_of_its_gpu():
    board = Board("GPU-aa11", cpu_words=(0b11,), instances=[Instance("MIG-c1", 1)])

    gpu = find_with(None, board).gpus[0]

    assert (gpu.total_bytes, gpu.cpus, gpu.board) == (20 * GIB, frozenset({0, 1}), "GPU-aa11")


def test_mig_mode_without_instances_is_a_problem():
    report = find_with(None, Board("GPU-aa11", instances=[None]), Board("GPU-ab22"))

    assert devices(report) == ["GPU-ab22"]
    assert report.problem == "GPU 0 is left out: it is in MIG mode but has no instance (see `nvidia-smi mig`)."
