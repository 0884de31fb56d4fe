"""Everything that reads files provided by others refuses pipes, directories, sockets and devices at once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tgis_cli.decide.preflight import check_readable
from tgis_cli.model_files import DEMO_MODEL_DIR, find_model_dir
from tgis_cli.model_files.convert.torch_file import read_torch_file
from tgis_server.engines.native.families import read_spec
from tgis_server.errors import TgisError
from tgis_server.frontend.text import Tokenizer
from tgis_server.frontend.transport.tls import read_tls_file
from tgis_server.host.regular_file import open_regular
from tgis_server.model_files import SAFETENSORS, read_json, read_tensors, read_weight_map

PATIENCE_S = 5.0


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """Fail a test that waits for a pipe."""

    def give_up(*_: object) -> NoReturn:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_directory(path: Path) -> None:
    path.mkdir()


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("put", "kind"),
    [
        (put_pipe, "a named pipe"),
        (put_directory, "a directory"),
        (put_socket, "a socket"),
        (put_device, "a device"),
    ],
)
def test_only_regular_files_are_opened(put: Callable[[Path], None], kind: str, tmp_path: Path):
    put(tmp_path / "f")

    with pytest.raises(OSError, match=f"it is {kind}, not a file"):
        open_regular(tmp_path / "f")


def test_a_link_to_a_file_is_opened(tmp_path: Path):
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "link").symlink_to("blob")

    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", lambda model: read_json(find_model_dir(str(model), None, model) / "config.json")),
        ("config.json", read_spec),
        ("generation_config.json", read_spec),
        (SAFETENSORS.single, lambda model: read_tensors(model, print)),
        (SAFETENSORS.index, lambda model: read_weight_map(model / SAFETENSORS.index)),
        ("pytorch_model.bin", lambda model: read_torch_file(model / "pytorch_model.bin")),
        ("server.pem", lambda model: read_tls_file(model / "server.pem")),
        ("server.pem", lambda model: check_readable("--tls-cert-path", model / "server.pem")),
    ],
)
def test_a_pipe_in_place_of_a_file_is_refused_by_name(name: str, read: Callable[[Path], object], tmp_path: Path):
    model = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    put_pipe(model / name)

    with pytest.raises((TgisError, OSError), match=rf"{name}.*it is a named pipe, not a file|not a file: .*{name}"):
        read(model)


def test_a_pipe_in_place_of_a_tokenizer_is_refused_by_name(tmp_path: Path):
    put_pipe(tmp_path / "tokenizer.json")

    with pytest.raises(TgisError, match=r"tokenizer\.json cannot be read \(it is a named pipe, not a file\)"):
        Tokenizer.load(tmp_path, 1)
