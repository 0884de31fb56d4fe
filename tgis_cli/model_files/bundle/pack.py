"""Making a bundle."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tgis_cli.model_files.bundle.files import HashingReader, new_at, open_plain_file, write_new
from tgis_cli.model_files.bundle.manifest import MANIFEST, SUMS, Manifest
from tgis_cli.model_files.cache.disk import Advance, check_disk, sync
from tgis_cli.terminal.capabilities import is_terminal
from tgis_cli.terminal.exits import silence
from tgis_server.errors import ModelError, UsageError

STREAM = "-"
COMPRESSED = (".gz", ".tgz", ".zip", ".zst", ".xz", ".bz2")

AddFile = Callable[[str, HashingReader], None]


def make_bundle(model_dir: Path, manifest: Manifest, target: str, advance: Advance) -> None:
    """Write a bundle.

    Raises:
        UsageError: the target exists or cannot be written.
        NotEnoughDevices: the target's disk has too little space.
        ModelError: a file is damaged, or has a name that is not allowed in a bundle.
    """
    if invalid := manifest.find_invalid():
        raise ModelError(
            f"{model_dir} contains a file named {invalid!r}, a name that is not allowed in a bundle: remove or rename "
            "the file."
        )
    with open_target(target, manifest.num_bytes) as add_file:
        text = json.dumps(asdict(manifest), indent=1).encode()
        add_file(MANIFEST, HashingReader(io.BytesIO(text), len(text)))
        sums = []
        for file in manifest.files:
            with open_plain_file(model_dir / file.name, "check its owner and mode") as source:
                reader = HashingReader(source, file.size, file.digest, advance)
                add_file(file.name, reader)
            if not reader.is_as_stated:
                raise ModelError(
                    f"{model_dir / file.name} is damaged: repair it with `tgis download-weights --verify`."
                )
            sums.append(f"{reader.sha256.hexdigest()}  {file.name}\n")
        text = "".join(sums).encode()
        add_file(SUMS, HashingReader(io.BytesIO(text), len(text)))


@contextmanager
def open_target(target: str, num_bytes: int) -> Iterator[AddFile]:
    """Open a directory, a tar file or a tar stream on stdout, as its name says. Yields a function that adds a file."""
    if not target:
        raise UsageError("The bundle's name is empty: name a new directory or a .tar file.")
    if target.endswith(COMPRESSED):
        raise UsageError(
            f"Weights do not compress well, so {target} would save nothing: name a directory or a .tar file."
        )
    if target == STREAM:
        if is_terminal(sys.stdout):
            raise UsageError(
                "A bundle cannot be written to a terminal: redirect the output, or name a directory or a .tar file."
            )
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
            try:
                yield partial(add_to_tar, tar)
            except BaseException:
                silence(sys.stdout)  # its reader may never take the buffered rest
                raise
        return
    path = Path(target)
    with new_at(path, is_file=target.endswith(".tar")) as temporary:
        check_disk(path.absolute().parent, num_bytes, "The bundle", "choose another place")
        if temporary.is_dir():
            yield lambda name, reader: write_new(temporary / name, reader)
        else:
            with tarfile.open(temporary, mode="w") as tar:
                yield partial(add_to_tar, tar)
            sync(temporary)


def add_to_tar(tar: tarfile.TarFile, name: str, reader: HashingReader) -> None:
    entry = tarfile.TarInfo(name)  # no owner and no time: the same model gives the same bytes
    entry.size, entry.mode = reader.size, 0o644
    tar.addfile(entry, reader)
