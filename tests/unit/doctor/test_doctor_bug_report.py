"""The archive of `tgis doctor --bundle`: complete, written atomically, and without secrets."""

from __future__ import annotations

import json
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from doctor_subject import with_files
from tgis_cli.doctor import bug_report, examine, run_checks, verdicts_as_dict, write_bug_report
from tgis_cli.doctor.bug_report import Scrubber
from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_cli.runs.run_dir import make_run_dir
from tgis_server.errors import UsageError

CANARY = "canary"  # in each secret of these tests, and nowhere else


def report(directory: Path, environ: Mapping[str, str], **flags: str) -> Path:
    """Write an archive to a directory that is also the parent of run directories."""
    options = {"run_dir": str(directory), "grpc_port": "0", "port": "0"} | flags
    host = with_files(directory / "root", {"proc/meminfo": "MemTotal: 1 kB", "proc/cpuinfo": "a\n\nb\n"})
    subject = examine(options, environ, host=host)
    write_bug_report(directory / "report.tgz", subject, verdicts_as_dict(subject, run_checks(subject)))
    return directory / "report.tgz"


def unpack(archive: Path) -> dict[str, str]:
    with tarfile.open(archive) as opened:
        return {entry.name.removeprefix("tgis-report/"): opened.extractfile(entry).read().decode() for entry in opened}


def fail_a_run(parent: Path, name: str, text: str) -> None:
    """Leave the files of a failed run."""
    run_dir = make_run_dir(parent)
    (run_dir / "serve.json").write_text("{}")
    (run_dir / "errors" / name).write_text(text)


def test_an_archive_is_private_and_has_what_support_needs(tmp_path: Path):
    fail_a_run(tmp_path, "shard-0.log", "Traceback\n")

    archive = report(tmp_path, {"HOME": "/", "LANG": "C"}, model_name=str(DEMO_MODEL_DIR))

    held = unpack(archive)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert [name for name in held if not name.startswith(("machine/", "runs/"))] == [
        *("doctor.json", "config.json", "environment.json", "packages.txt"),
        *("model/files.json", "model/config.json"),
    ]
    assert held["machine/proc-meminfo"] == "MemTotal: 1 kB"
    assert held["machine/cpuinfo"] == "a"
    assert [text for name, text in held.items() if name.endswith("shard-0.log")] == ["Traceback\n"]
    assert json.loads(held["model/files.json"])["model.safetensors"] > 1_000_000
    assert json.loads(held["config.json"])["options"]["port"] == {"value": 0, "origin": "flag --port"}
    assert json.loads(held["environment.json"]) == {"HOME": "/", "LANG": "C"}


def test_an_archive_has_no_secrets_from_any_source(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    for name in (".netrc", ".cache-token", "key.pem"):
        (home / name).write_text(f"{CANARY}-{name}")
    fail_a_run(
        tmp_path,
        "shard-0.log",
        f"Authorization: Bearer {CANARY}0123456789\nconnecting to http://me:{CANARY}/@collector:4317/x\n"
        f"token was {CANARY}-of-the-environment\nhf_{CANARY}012345\n"
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"
        "kept\n",
    )
    environ = {
        "HOME": str(home),
        "HF_TOKEN": f"{CANARY}-of-the-environment",
        "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws",
        "CUDA_API_TOKEN": f"{CANARY}-cuda",
        "MY_NOTES": f"{CANARY}-notes",
        "OTLP_ENDPOINT": f"https://me:{CANARY}@collector:4317",
        "https_proxy": f"http://me:{CANARY}/with@slash@proxy:3128",
        "http_proxy": f"me:{CANARY}@proxy:3128",
        "ODD_PASSWORD": f'{CANARY}"\\ä',
        "HF_ENDPOINT": f"https://{CANARY}@mirror",
        "PORT": "0",
    }

    held = unpack(report(tmp_path, environ, tls_cert_path=str(home / "key.pem"), tls_key_path=str(home / "key.pem")))

    assert [name for name, text in held.items() if CANARY in text or CANARY in name] == []
    assert json.loads(held["environment.json"])["MY_NOTES"] == "(set)"
    assert json.loads(held["environment.json"])["HF_ENDPOINT"] == "https://***@mirror"
    assert "kept" in "".join(held.values())


def test_an_existing_file_is_not_overwritten(tmp_path: Path):
    (tmp_path / "report.tgz").write_text("precious")

    with pytest.raises(UsageError, match=r"--bundle .*report\.tgz already exists"):
        report(tmp_path, {})

    assert (tmp_path / "report.tgz").read_text() == "precious"


@pytest.mark.parametrize("place", ["missing/x.tgz", "file/x.tgz"])
def test_a_target_that_would_not_be_in_a_directory_is_refused(tmp_path: Path, place: str):
    (tmp_path / "file").touch()
    subject = examine({"run_dir": str(tmp_path)}, {})

    with pytest.raises(UsageError, match=r"cannot be created: .* is not a directory; choose another place"):
        write_bug_report(tmp_path / place, subject, {})


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)

    with pytest.raises(UsageError, match=r"cannot be written: No space left on device"):
        report(tmp_path, {})

    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_part_that_fails_is_reported_and_the_rest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(bug_report, "run_nvidia_smi", fail)

    held = unpack(report(tmp_path, {}))

    assert held["collect_machine.error"] == "PermissionError: [Errno 13] Permission denied\n"
    assert "packages.txt" in held


def test_short_values_are_not_masked():
    assert Scrubber({"API_KEY": "a"}).scrub("a banana") == "a banana"
