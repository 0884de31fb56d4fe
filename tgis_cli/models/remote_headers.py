"""A model of the hub without its weights: configuration, and the headers of the safetensors files.

The files are laid out in a directory as a download would leave them, but of weights only the header is there: the rest
is a hole, which takes no room on a disk. So everything that inspects a model before it is loaded inspects this too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.models.get_model import GetModel, Order
from tgis_cli.models.hub import METADATA_TIMEOUT_S, Hub, RemoteFile
from tgis_cli.models.selection import SAFETENSORS, SAFETENSORS_INDEX, SINGLE_SAFETENSORS
from tgis_server.engines.native.checkpoint import DTYPES, ITEM_BYTES, MAX_HEADER_BYTES
from tgis_server.engines.native.families import parameters_of, read_spec

FIRST_BYTES = 64 << 10  # holds the header of most files
NUM_PARALLEL = 8
SMALL_FILES = ("config.json", "generation_config.json", SAFETENSORS_INDEX)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a download would bring."""

    commit: str
    num_bytes: int
    missing_bytes: int  # of these, not in the cache
    has_safetensors: bool


class HeaderReader(Hub):
    """A hub that can be asked for a part of a file."""

    def read_header(self, file: RemoteFile, commit: str) -> bytes:
        """The length and the header of a safetensors file, or its beginning if that is no header."""
        head = self._read_range(file, commit, 0, min(FIRST_BYTES, file.size))
        end = 8 + int.from_bytes(head[:8], "little")
        if len(head) < end <= min(MAX_HEADER_BYTES, file.size):
            head += self._read_range(file, commit, len(head), end)
        return head[:end]

    def _read_range(self, file: RemoteFile, commit: str, start: int, end: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(self.model, file.name, revision=commit)
        headers = build_hf_headers(token=self.token)
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}

        def ask() -> bytes:
            # Redirects to another host are followed without the token.
            with get_session().stream("GET", url, headers=headers, timeout=METADATA_TIMEOUT_S) as response:
                hf_raise_for_status(response)
                # A server that ignores ranges sends the whole file: leaving the block ends that.
                skipped = 0 if response.status_code == 206 else start
                return take(response.iter_raw(), skipped, end - start)

        return b"" if start == end else bytes(self._request(ask))


def take(pieces: Iterable[bytes], skipped: int, count: int) -> bytes:
    """``count`` bytes of a stream, after the first ``skipped``.

    Raises:
        ConnectionError: the stream ends before.
    """
    taken = bytearray()
    for piece in pieces:
        taken += piece
        if len(taken) >= skipped + count:
            return bytes(taken[skipped : skipped + count])
    raise ConnectionError("the answer ended early")


def fetch_headers(order: Order, cache_dir: Path, directory: Path, say: Callable[[str], None]) -> RemoteModel:
    """Lay out in ``directory`` what is needed to inspect the model; the cache is looked at, but not written.

    Raises:
        UsageError, ModelError, HubError: see :class:`Hub`.
    """
    planned = GetModel(order, cache_dir, as_json=False).plan()
    listing, files = planned.selection.listing, planned.selection.files
    hub = HeaderReader(order.model, order.revision, order.transfers.token, say)
    for name in SMALL_FILES:
        if any(file.name == name for file in files):
            (directory / name).write_text(hub.read_text(name, listing.commit))
    weights = [file for file in files if file.name.endswith(SAFETENSORS)]
    with ThreadPoolExecutor(NUM_PARALLEL) as pool:
        headers = pool.map(lambda file: hub.read_header(file, listing.commit), weights)
        for file, header in zip(weights, headers, strict=True):
            write_with_hole(directory / file.name, header, file.size)
    return RemoteModel(listing.commit, planned.selection.num_bytes, planned.missing.num_bytes, bool(weights))


def write_with_hole(file: Path, beginning: bytes, size: int) -> None:
    with file.open("wb") as stream:
        stream.write(beginning)
        stream.truncate(size)


def write_converted_header(directory: Path) -> None:
    """Lay out weights as a conversion to safetensors would make them, going by config.json alone.

    Raises:
        ModelError: no engine knows the model.
    """
    spec = read_spec(directory)
    dtype = spec.dtype or "float32"
    names = {name: spelling for spelling, name in DTYPES.items()}
    shapes = {piece.tensor: piece.tensor_shape for parameter in parameters_of(spec) for piece in parameter.pieces}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    write_with_hole(directory / SINGLE_SAFETENSORS, len(raw).to_bytes(8, "little") + raw, 8 + len(raw) + end)
