"""A model on the hub without its data: configuration, and the headers of the safetensors files.

The files are laid out as a download would leave them, but in the weight files everything after the header is a hole,
which takes no disk space. So the code that inspects models before loading works on this directory too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from tgis_cli.model_files.convert.safetensors_file import Content
from tgis_cli.model_files.convert.torch_file import StoredTensor
from tgis_cli.model_files.download.hub import Hub
from tgis_cli.model_files.download.selection import SAFETENSORS_ENDING
from tgis_cli.model_files.download.snapshot import ChosenFiles, Order, SnapshotDownload
from tgis_server import model_files
from tgis_server.engines.catalogue import find_engine

SMALL_FILES = ("config.json", "generation_config.json", model_files.SAFETENSORS.index)


def fetch_headers(order: Order, cache_dir: Path, directory: Path, tell: Callable[[str], None]) -> ChosenFiles:
    """Lay out in ``directory`` what is needed to inspect the model; the cache is read, but not written.

    Returns:
        What a download would fetch.

    Raises:
        UsageError, ModelError, HubError: see :class:`Hub`.
    """
    chosen = SnapshotDownload(order, cache_dir, as_json=False).choose_files()
    listing, files = chosen.selection.listing, chosen.selection.files
    hub = Hub(order.model, order.revision, order.transfers.token, tell)
    for name in SMALL_FILES:
        if any(file.name == name for file in files):
            (directory / name).write_text(hub.read_text(name, listing.commit))
    weights = [file for file in files if file.name.endswith(SAFETENSORS_ENDING)]
    headers = hub.map(lambda file: hub.read_header(file, listing.commit), weights)
    for file, header in zip(weights, headers, strict=True):
        write_with_hole(directory / file.name, header, file.size)
    return chosen


def write_with_hole(file: Path, beginning: bytes, size: int) -> None:
    with file.open("wb") as stream:
        stream.write(beginning)
        stream.truncate(size)


def write_content_with_hole(file: Path, content: Content) -> None:
    head = content.make_head()
    write_with_hole(file, head, len(head) + content.num_bytes)


def write_converted_header(directory: Path, source_bytes: int = 0) -> None:
    """Lay out weights as a conversion to safetensors would make them, judging by config.json alone.

    Args:
        source_bytes: size of the PyTorch weights, from which the dtype is inferred if config.json has none.

    Raises:
        ModelError: no engine supports the model.
    """
    _, summary = find_engine(directory)
    shapes = summary.tensors
    is_narrow = 0 < source_bytes < 3 * sum(map(math.prod, shapes.values()))
    dtype, item_bytes = model_files.TENSOR_DTYPES[summary.dtype or ("float16" if is_narrow else "float32")]
    tensors = {name: StoredTensor(dtype, item_bytes, shape, (), 0) for name, shape in shapes.items()}
    write_content_with_hole(directory / model_files.SAFETENSORS.single, Content(directory, tensors, {}))
