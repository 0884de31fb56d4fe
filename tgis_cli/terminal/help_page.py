"""A help page as text: usage, what a command does, its options in sections, and examples.

Independent of the frameworks that parse command lines: ``option_help.py`` and ``argument_parser.py`` make the pages.
Names are never cut, and every text is wrapped between words with a hanging indent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tgis_server.words.layout import count_columns, wrap

MAX_COLUMNS = 100  # longer lines are hard to read
MIN_COLUMNS = 40
NAMES_SHARE = 0.4  # of a line; a longer name gets a line of its own
GAP = 2
BOLD, NAME, DIM, END = "\x1b[1m", "\x1b[1;36m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Row:
    """An option, argument, command or example, and what it does."""

    names: str
    text: str
    facts: str = ""  # such as ``env: PORT; default: 3000``


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class HelpPage:
    """Everything that ``--help`` shows about a command."""

    usage: str  # without ``Usage:``
    paragraphs: tuple[str, ...]
    sections: tuple[Section, ...]
    examples: tuple[Row, ...] = ()
    examples_title: str = "Examples"

    def render(self, width: int, *, is_styled: bool) -> str:
        """
        Args:
            width: columns.
            is_styled: with boxes and colours; otherwise without escape sequences, and in ASCII if the texts are.
        """
        width = max(MIN_COLUMNS, min(width, MAX_COLUMNS))
        lines = style(wrap(self.usage, width, first="Usage: "), BOLD if is_styled else "")
        for paragraph in self.paragraphs:
            lines += ["", *wrap(paragraph, width)]
        lines.append("")
        for section in self.sections:
            lines += box(section, width) if is_styled else plain(section, width)
        if self.examples:
            lines += [*style([self.examples_title], BOLD if is_styled else ""), *lay_out_examples(self.examples, width)]
        return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def plain(section: Section, width: int) -> Iterator[str]:
    yield section.title
    for line in lay_out_rows(section.rows, width - 2, is_styled=False):
        yield f"  {line}"
    yield ""


def lay_out_examples(examples: Sequence[Row], width: int) -> Iterator[str]:
    """Command lines, ready to be copied, with what they do beside them or, if that does not fit, below."""
    start = 2 + GAP + max(len(example.names) for example in examples)
    is_beside = start + max(len(example.text) for example in examples) <= width
    for example in examples:
        if is_beside:
            yield f"  {example.names}".ljust(start) + example.text
        else:
            yield f"  {example.names}"
            yield from wrap(example.text, width, first=" " * 6)


def box(section: Section, width: int) -> Iterator[str]:
    title = f"─ {section.title} "
    yield f"{DIM}╭{title}{'─' * (width - 2 - count_columns(title))}╮{END}"
    for line in lay_out_rows(section.rows, width - 4, is_styled=True):
        visible = line
        for code in (BOLD, NAME, DIM, END):
            visible = visible.replace(code, "")
        yield f"{DIM}│{END} {line}{' ' * (width - 4 - count_columns(visible))} {DIM}│{END}"
    yield f"{DIM}╰{'─' * (width - 2)}╯{END}"


def lay_out_rows(rows: Sequence[Row], width: int, *, is_styled: bool) -> Iterator[str]:
    """Names in one column and texts beside them; a name that is too long for the column is above its text."""
    most = int(width * NAMES_SHARE)
    start = GAP + max((size for row in rows if (size := count_columns(row.names)) <= most), default=GAP)
    for row in rows:
        names = wrap(row.names, width)
        texts = wrap(" ".join(filter(None, (row.text, f"[{row.facts}]" if row.facts else ""))), width - start)
        if is_styled and row.facts:
            texts = dim_after(texts, len("".join(row.text.split())))
        is_beside = len(names) == 1 and count_columns(names[0]) <= start - GAP
        room = start - count_columns(names[0])
        names = style(names, NAME if is_styled else "")
        if is_beside:
            first, *texts = texts
            names = [names[0] + " " * room + first]
        yield from names
        yield from (" " * start + text for text in texts)


def style(lines: list[str], code: str) -> list[str]:
    return [f"{code}{line}{END}" for line in lines] if code else lines


def dim_after(lines: list[str], num_letters: int) -> list[str]:
    """Dim everything after this many characters that are not blanks: wrapping only changes blanks."""
    dimmed = []
    for line in lines:
        at = 0
        while at < len(line) and num_letters > 0:
            num_letters -= line[at] != " "
            at += 1
        rest = line[at:]
        dimmed.append(f"{line[:at]}{DIM}{rest}{END}" if rest else line)
    return dimmed
