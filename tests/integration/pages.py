"""Runs the code blocks of a page in docs/ as a reader would: in an empty directory, one after the other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    section: str  # the heading of level 2 above it
    language: str
    text: str


def read_blocks(name: str, *languages: str) -> list[Block]:
    """The blocks of docs/NAME in these languages, in order. Blocks without a language are not for running."""
    page = (ROOT / "docs" / name).read_text()
    parts = HEADING.split(page)  # what precedes the first heading, then headings and their sections in turn
    sections = zip(["", *parts[1::2]], parts[0::2], strict=True)
    return [
        Block(section, language, text)
        for section, content in sections
        for language, text in BLOCK.findall(content)
        if language in languages
    ]


def at_ports(text: str, grpc_port: int, http_port: int) -> str:
    """The text with the ports of a test's server in place of the default ones."""
    return text.replace(":8033", f":{grpc_port}").replace(":3000", f":{http_port}")
