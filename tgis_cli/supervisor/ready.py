"""The announcement that everything is ready: where to send requests, and what serves them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgis_cli.runs.servers import READY_FILE
from tgis_cli.supervisor.first_request import write_first_request
from tgis_cli.supervisor.timeline import Timeline
from tgis_server.engines.catalogue import get_engine
from tgis_server.host.ports import ALL_INTERFACES
from tgis_server.run import Run
from tgis_server.wire import shard_pb2 as pb
from tgis_server.words.addresses import WILDCARDS, bracket
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.layout import lay_out, wrap
from tgis_server.words.sizes import format_bytes, format_count

LABELS = {
    "demo model": "This is the demo model, which only tells simple stories; serve your own with `tgis launch MODEL`.",
    "rehearsal": "This is a rehearsal: no model is loaded, and the answers are made up.",
}
TLS_FACTS: dict[str, list[str]] = {"off": [], "server": ["TLS"], "mutual": ["TLS with client certificates"]}
START, TRY = "start", "try"  # names of rows
FRAME_COLUMNS = 4  # of a panel


@dataclass(frozen=True, slots=True)
class Ready:
    """Facts about a group that is serving."""

    run: Run
    info: pb.InfoReply  # of shard 0
    grpc_port: int  # as bound, even if the option was 0
    http_port: int
    pids: dict[str, int]
    timeline: Timeline
    certificate_names: tuple[str, ...] = ()  # of the server's certificate
    is_found: bool = False  # by a client that is given no address

    @property
    def host(self) -> str:
        """An address that reaches the server from this machine."""
        return bracket(WILDCARDS.get(self.run.config.host, self.run.config.host))

    @property
    def grpc(self) -> str:
        """Where clients on this machine connect."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def http(self) -> str:
        scheme = "http" if self.run.config.http_tls == "off" else "https"
        return f"{scheme}://{self.host}:{self.http_port}"

    @property
    def kv_tokens(self) -> int:
        return self.info.num_blocks * self.info.block_size

    @property
    def first_request(self) -> str:
        return write_first_request(self.run.config, self.grpc, self.certificate_names, is_found=self.is_found)

    @property
    def grpc_tls(self) -> str:
        """Like ``--http-tls``."""
        config = self.run.config
        return "off" if config.tls_cert_path is None else "mutual" if config.tls_client_ca_cert_path else "server"

    @property
    def tls(self) -> dict[str, Any] | None:
        """What a client must know about TLS on the gRPC port."""
        config = self.run.config
        if config.tls_cert_path is None:
            return None
        return {
            "certificate": str(config.tls_cert_path.absolute()),
            "names": list(self.certificate_names),
            "demands_client_certificate": config.tls_client_ca_cert_path is not None,
        }

    def facts(self) -> dict[str, Any]:
        """The fields of the JSON event and of ``ready.json``."""
        return {
            "grpc": self.grpc,
            "http": self.http,
            "host": self.run.config.host,
            "grpc_port": self.grpc_port,
            "http_port": self.http_port,
            "tls": self.tls,
            "model": self.run.model_id,
            "label": self.run.label,
            "dtype": self.info.dtype,
            "device": self.info.device,
            "kernels": self.info.kernels,
            "num_shard": self.run.num_shard,
            "max_sequence_length": self.info.max_sequence_length,
            "kv_tokens": self.kv_tokens,
            "elapsed_s": round(self.timeline.total_s, 3),
            "startup": self.timeline.facts(),
            "run_dir": str(self.run.run_dir),
            "pids": self.pids,
        }

    @property
    def listens_on_all(self) -> bool:
        """Whether other machines can connect, whatever the address by which they know this one."""
        return self.run.config.host in ALL_INTERFACES

    def describe_address(self, port: int, tls: str) -> str:
        """``0.0.0.0:8033 (all interfaces, TLS)``: what the server is bound to.

        Args:
            tls: the port's: "off", "server" or "mutual".
        """
        host = bracket(self.run.config.host) or "*"
        facts = [*(["all interfaces"] if self.listens_on_all else []), *TLS_FACTS[tls]]
        return f"{host}:{port}" + (f" ({', '.join(facts)})" if facts else "")

    def rows(self) -> list[tuple[str, str]]:
        """The main facts for people, as name and value."""
        run, info = self.run, self.info
        device = (info.device or run.device) if get_engine(run.engine).computes else "no device"
        device += f" ({info.kernels})" if info.kernels else ""
        shards = f"{format_count(run.num_shard, 'shard')} on {device}"
        weights = f", {format_bytes(info.weight_bytes * run.num_shard)} of weights" if info.weight_bytes else ""
        return [
            ("model", f"{run.model_id} ({info.model_type}, {info.dtype or run.dtype}{weights})"),
            ("runs as", shards),
            ("capacity", f"{self.kv_tokens:,} tokens of keys and values; {info.max_sequence_length:,} per sequence"),
            ("gRPC", self.describe_address(self.grpc_port, self.grpc_tls)),
            ("HTTP", self._describe_http()),
            (START, self.timeline.describe()),
            (TRY, self.first_request),
        ]

    def _describe_http(self) -> str:
        pages = f"{self.http}/health and /metrics"
        if not self.listens_on_all:
            return pages
        return f"{self.describe_address(self.http_port, self.run.config.http_tls)}: {pages}"

    @property
    def notes(self) -> list[str]:
        """Sentences that people must not overlook."""
        label = LABELS.get(self.run.label)
        return [*([label] if label else []), *self.info.notes]


def write_ready_file(ready: Ready, launcher_pid: int) -> None:
    """Write ``ready.json`` in the run directory; it is complete from the moment it exists."""
    file = ready.run.run_dir / READY_FILE
    temporary = Path(f"{file}.tmp")
    temporary.write_text(json.dumps({**ready.facts(), "pid": launcher_pid}, indent=1))
    temporary.rename(file)


def make_panel(ready: Ready, width: int, *, is_verbose: bool) -> Any:
    """The announcement as a panel for a terminal of ``width`` columns.

    A first request that does not fit follows below its name, on a line of its own: it is meant to be copied.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    room = width - FRAME_COLUMNS
    text = Text(no_wrap=True)
    rows = select_rows(ready, is_verbose=is_verbose)
    name_columns = max(len(name) for name, _ in rows)
    laid_out = dict(zip(rows, lay_out(rows, room, indent=0), strict=True))
    below = [row for row in rows if row[0] == TRY and len(laid_out[row]) > 1]
    for row, lines in laid_out.items():
        if row not in below:
            start = len(text)
            text.append("\n".join(lines) + "\n", "bold" if row[0] == TRY else "")
            text.stylize("not bold dim", start, start + name_columns)
    for note in ready.notes:
        text.append("\n".join(wrap(note, room)) + "\n", "yellow")
    text.rstrip()
    title = f"ready in {ready.timeline.total_s:.1f} s" + (f" ({ready.run.label})" if ready.run.label else "")
    group: list[Panel | Text] = [Panel(text, title=title, title_align="left", border_style="green", expand=False)]
    for name, request in below:
        group.append(Text(f"{name}:", style="dim"))
        group.append(Text(escape_controls(request), style="bold", no_wrap=True, overflow="ignore"))
    return Group(*group)


def make_lines(ready: Ready, width: int | None = None, *, is_verbose: bool = True) -> list[str]:
    """The announcement as plain text; the first request stays on one line."""
    label = f" ({ready.run.label})" if ready.run.label else ""
    rows = select_rows(ready, is_verbose=is_verbose)
    pairs = zip(rows, lay_out(rows, width), lay_out(rows), strict=True)
    return [
        f"Ready in {ready.timeline.total_s:.1f} s{label}.",
        *(line for (name, _), wrapped, whole in pairs for line in (whole if name == TRY else wrapped)),
        *(line for note in ready.notes for line in wrap(f"  {note}", width)),
    ]


def select_rows(ready: Ready, *, is_verbose: bool) -> list[tuple[str, str]]:
    """Without ``is_verbose``, all but where the time of startup went: the title has its sum."""
    return [(name, value) for name, value in ready.rows() if is_verbose or name != START]
