"""``tgis generate``: complete a text with a running server and show the answer as it is made."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tgis_cli.clients.grpc_client import DEFAULT_URL, Client, Sampling, build_request
from tgis_server.errors import UsageError

if TYPE_CHECKING:
    from tgis_server.wire import generation_pb2 as pb

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@dataclass(slots=True)
class Answer:
    """A stream, put together, with the times at which its parts came."""

    started_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    ended_at: float = 0.0
    text: str = ""
    last: Any = None  # the frame that says why it ended
    input_token_count: int = 0
    generated_token_count: int = 0
    seed: int = 0

    def add(self, frame: pb.GenerationResponse) -> None:
        now = time.monotonic()
        if frame.generated_token_count and self.first_at is None:
            self.first_at = now
        self.ended_at = now
        self.text += frame.text
        self.last = frame
        self.input_token_count = self.input_token_count or frame.input_token_count
        self.generated_token_count = max(self.generated_token_count, frame.generated_token_count)
        self.seed = self.seed or frame.seed

    @property
    def stop_reason(self) -> str:
        from tgis_server.wire import generation_pb2 as pb

        return str(pb.StopReason.Name(self.last.stop_reason)) if self.last is not None else "NOT_FINISHED"

    def as_dict(self) -> dict[str, Any]:
        facts = {
            "text": self.text,
            "stop_reason": self.stop_reason,
            "input_token_count": self.input_token_count,
            "generated_token_count": self.generated_token_count,
            "seconds": round(self.ended_at - self.started_at, 4),
        }
        if self.last is not None and self.last.stop_sequence:
            facts["stop_sequence"] = self.last.stop_sequence
        return facts | ({"seed": self.seed} if self.seed else {})

    def describe(self) -> str:
        """One line of statistics."""
        total_s = self.ended_at - self.started_at
        first_ms = ((self.first_at or self.ended_at) - self.started_at) * 1000
        decode_s = self.ended_at - (self.first_at or self.ended_at)
        rate = f", {(self.generated_token_count - 1) / decode_s:.1f} tokens/s after that" if decode_s > 0 else ""
        return (
            f"{self.input_token_count} tokens in, {self.generated_token_count} out in {total_s:.2f} s; "
            f"first after {first_ms:.0f} ms{rate}; {self.stop_reason}"
        )


@app.command()
def generate(
    text: Annotated[str | None, typer.Argument(help="What to complete; read from stdin when left out.")] = None,
    url: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the server is.")] = DEFAULT_URL,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most tokens of the answer.", show_default="20")
    ] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="Sample; above 1 is more random.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="X", help="Sample from this share of probability.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, metavar="N", help="Sample from the N likeliest tokens.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Sample the same again.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer at this text; may be repeated.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole answer as one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print statistics on stderr.")] = False,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Use TLS; CA certificate of the server.")] = None,
) -> None:
    """Complete a text with a running server.

    Greedy, unless an option of sampling is given. Exit codes: 0 done, 1 the server refused or broke off, 2 usage.
    """
    prompt = text if text is not None else read_prompt()
    sampling = Sampling(temperature, top_p, top_k, seed)
    with Client.connect(url, ca) as client:
        request = build_request(prompt, max_new_tokens or 0, sampling, stop or [])
        answer = Answer()
        show(client.generate_stream(request), answer, as_text=not json_)
    if json_:
        print(json.dumps(answer.as_dict(), ensure_ascii=False))
    if verbose:
        print(answer.describe(), file=sys.stderr)


def read_prompt() -> str:
    """All of stdin, less the last line's end that a pipe from ``echo`` has."""
    if sys.stdin.isatty():
        raise UsageError('No text is given: `tgis generate "Once upon a time"`, or pipe one in.')
    return sys.stdin.read().removesuffix("\n")


def show(frames: Iterable[pb.GenerationResponse], answer: Answer, *, as_text: bool) -> None:
    """Print text as it comes, and end its last line where it has not ended."""
    try:
        for frame in frames:
            answer.add(frame)
            if as_text:
                print(frame.text, end="", flush=True)
    finally:
        if as_text and answer.text and not answer.text.endswith("\n"):
            print(flush=True)
