"""Shows one streamed answer: laid out for people on a terminal, as bare text elsewhere.

The only place that writes a model's text to a terminal: control characters in it are shown, not obeyed. Stateless
between answers, so a prompt loop uses one presenter for all of them.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from tgis_cli.clients.answer import Answer
from tgis_cli.clients.parameter_table import as_flag
from tgis_cli.clients.token_view import TokenColors, make_legend, make_tables
from tgis_cli.terminal.capabilities import can_encode, get_width, has_color, is_capable, is_terminal
from tgis_cli.terminal.quiet_input import quiet_input
from tgis_cli.terminal.spinner import Spinner
from tgis_cli.terminal.tables import print_tables
from tgis_cli.terminal.word_wrap import DIM, WordWriter
from tgis_server.words.control_characters import escape_controls

if TYPE_CHECKING:
    from tgis_server.wire import generation_pb2 as pb

MAX_PROMPT_LINES = 10  # only the end of a longer prompt is shown


@dataclass(frozen=True, slots=True)
class Presenter:
    """How answers are shown. ``Presenter.open`` detects what the outputs can do."""

    out: TextIO
    err: TextIO
    is_for_people: bool  # stdout is a terminal: prompt and answer, escaped
    wraps: bool  # stdout obeys escape sequences, so words are kept whole
    has_color: bool
    has_spinner: bool  # stderr is a capable terminal
    has_last_line: bool  # how long it took and how it ended, on stderr
    setting: Callable[[str], str] = as_flag  # how the last line names a parameter

    @classmethod
    def open(
        cls,
        environ: Mapping[str, str],
        *,
        out: TextIO | None = None,
        err: TextIO | None = None,
        verbose: bool = False,
        setting: Callable[[str], str] = as_flag,
    ) -> Presenter:
        """Make a presenter for the outputs of this process, unless others are given.

        The last line is for people who read both outputs in one place; ``verbose`` shows it anywhere.
        """
        out, err = out or sys.stdout, err or sys.stderr
        return cls(
            out,
            err,
            is_for_people=is_terminal(out),
            wraps=is_capable(out, environ),
            has_color=has_color(out, environ),
            has_spinner=is_capable(err, environ),
            has_last_line=verbose or (is_terminal(out) and is_terminal(err)),
            setting=setting,
        )

    def show(self, prompt: str, frames: Iterable[pb.GenerationResponse]) -> Answer:
        """Show the answer as it comes, and return it.

        ``frames`` is closed at the end, which cancels an unfinished call.
        Ctrl-C ends the answer, not the program: the answer so far is returned with ``was_interrupted``.

        Args:
            prompt: shown before the answer on a terminal, unless it is empty.

        Raises:
            RequestError: the server refused or failed; what came before is shown.
            BrokenPipeError: nobody reads the output any more.
        """
        answer = Answer()
        writer = self._make_writer()
        try:
            with quiet_input(self.out), interrupted_by_ctrl_c(), closed_at_end(frames):
                self._show_frames(prompt, frames, answer, writer)
        except KeyboardInterrupt:
            answer.was_interrupted = True
        finally:
            writer.end_line()
        self._show_tokens(answer, writer)
        if self.has_last_line:
            self.say(self._separator.join(answer.describe(self.setting)))
        return answer

    def show_whole(self, heading: str, prompt: str, answer: Answer) -> None:
        """Show a complete answer below a heading."""
        writer = self._make_writer()
        writer.write(f"{heading}\n", self._dim)
        self._write_prompt(prompt, writer)
        self._write_text(answer.last, TokenColors(), writer)
        writer.end_line()
        self._show_tokens(answer, writer)
        writer.write("\n")

    def say(self, sentence: str) -> None:
        """Print a dimmed remark on stderr."""
        writer = WordWriter(self.err, partial(get_width, self.err)) if self.has_spinner else BareWriter(self.err)
        writer.write(f"{sentence}\n", self._dim if self.has_spinner else "")

    def _show_frames(
        self, prompt: str, frames: Iterable[pb.GenerationResponse], answer: Answer, writer: Writer
    ) -> None:
        frames, colors = iter(frames), TokenColors()
        with self._make_spinner(writer):
            accepted = list(islice(frames, 1))  # a refused call has no frame: only its error is shown
        self._write_prompt(prompt, writer)
        with self._make_spinner(writer) as spinner:
            for frame in chain(accepted, frames):
                answer.add(frame)
                if frame.generated_token_count:
                    spinner.stop()
                self._write_text(frame, colors, writer)

    def _write_text(self, frame: pb.GenerationResponse, colors: TokenColors, writer: Writer) -> None:
        if not self.is_for_people:
            writer.write(frame.text)
        elif self.has_color:
            for text, color in colors.split(frame):
                writer.write(escape_controls(text), color)
        else:
            writer.write(escape_controls(frame.text))

    def _write_prompt(self, prompt: str, writer: Writer) -> None:
        if self.is_for_people and prompt:
            writer.write(self._shorten(prompt), self._dim)

    def _show_tokens(self, answer: Answer, writer: Writer) -> None:
        """Show what the text alone cannot: the legend of its colours, or tables of its tokens."""
        is_colored = self.is_for_people and self.has_color
        if is_colored and answer.tokens:
            for text, color in make_legend():
                writer.write(text, color or self._dim)
            writer.end_line()
        has_alternatives = any(token.top_tokens for token in answer.tokens)
        tokens = answer.tokens if has_alternatives or not is_colored else []
        if tokens or answer.input_tokens:
            writer.write("\n")
            print_tables(make_tables(answer.input_tokens, tokens), self.out)

    @property
    def _dim(self) -> str:
        return DIM if self.has_color else ""

    @property
    def _separator(self) -> str:
        return " · " if can_encode(self.err, "·") else "; "

    def _make_writer(self) -> Writer:
        return WordWriter(self.out, partial(get_width, self.out)) if self.wraps else BareWriter(self.out)

    def _make_spinner(self, writer: Writer) -> Spinner:
        """A spinner at the cursor, where the prompt has left it; invisible if that place is unknown."""
        if not self.has_spinner:
            return Spinner(self.err, 0, 0)
        if not self.is_for_people:
            return Spinner(self.err, 0, get_width(self.err))
        num_free = writer.num_free if isinstance(writer, WordWriter) else 0
        return Spinner(self.err, writer.column, num_free, indent=" " if writer.column else "")

    def _shorten(self, prompt: str) -> str:
        """The prompt, escaped. Only the end of a long one is shown, because the answer continues there."""
        most = MAX_PROMPT_LINES * get_width(self.out)
        lines = escape_controls(prompt[-most:]).split("\n")
        shown = "\n".join(lines[-MAX_PROMPT_LINES:])
        is_whole = len(prompt) <= most and len(lines) <= MAX_PROMPT_LINES
        return shown if is_whole else f"... {shown}"


class BareWriter:
    """Writes text unchanged, and tracks whether the cursor is within a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.column = 0  # at least 1 within a line

    def write(self, text: str, style: str = "") -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()
            self.column = 0 if text.endswith("\n") else 1

    def end_line(self) -> None:
        if self.column:
            self.write("\n")


Writer: TypeAlias = BareWriter | WordWriter


@contextmanager
def closed_at_end(frames: Any) -> Iterator[None]:
    try:
        yield
    finally:
        if close := getattr(frames, "close", None):
            close()


@contextmanager
def interrupted_by_ctrl_c() -> Iterator[None]:
    """Make the first SIGINT raise KeyboardInterrupt in this block; others are ignored until its end."""
    is_heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if not is_heeded or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
