"""Objects as YAML with the reasons as comments, and as JSON without them."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from tgis_cli.manifest.explained import Explained, strip, unwrap

WIDTH = 110  # of lines with comments
SHORTEST = 60  # of a comment's text, however deeply it is nested
INDENT = 2
# What some parser of YAML 1.1 or 1.2 takes for something other than a string.
WORDS = frozenset({"", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", ".nan", ".inf", "=", "<<"})
NUMBER = re.compile(
    r"[-+.]?\d[\d_,.]*(e[-+]?\d+)?|[-+]?0[xob][\da-f_]+|[-+]?\.inf|\d[\d_]*(:\d+)+(\.\d*)?", re.IGNORECASE
)
DATE = re.compile(r"\d{4}-\d\d?-\d\d?.*")


def to_yaml(objects: Iterable[Explained]) -> str:
    """A YAML document for each object."""
    return "---\n".join(to_document(each) for each in objects)


def to_json(objects: Iterable[Explained]) -> str:
    """One ``List`` with all objects."""
    items = [strip(each) for each in objects]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2, ensure_ascii=False)


def to_document(item: Explained) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 1 << 20  # never folded
    yaml.indent(mapping=INDENT, sequence=INDENT, offset=0)
    yaml.allow_unicode = True
    text = io.StringIO()
    yaml.dump(to_node(item.value, 0), text)
    return wrap_comment(item.why, 0, prefix="# ") + text.getvalue()


def to_node(value: Any, column: int) -> Any:
    """The value as ruamel.yaml writes it, with comments before its keys and items.

    Args:
        column: where its keys or dashes begin.
    """
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    match value:
        case Explained():
            return to_node(value.value, column)
        case dict() if value:
            node = CommentedMap()
            for key, each in value.items():
                node[key] = to_node(each, column + INDENT if isinstance(unwrap(each), dict) else column)
                add_comment(node, key, each, column)
            return node
        case list() | tuple() if value:
            sequence = CommentedSeq()
            for index, each in enumerate(value):
                sequence.append(to_node(each, column + INDENT))
                add_comment(sequence, index, each, column)
            return sequence
        case str() if is_ambiguous(value):
            return DoubleQuotedScalarString(value)
        case _:
            return value


def add_comment(node: Any, key: Any, value: Any, column: int) -> None:
    if isinstance(value, Explained):
        node.yaml_set_comment_before_after_key(key, before=wrap_comment(value.why, column), indent=column)


def wrap_comment(text: str, column: int, prefix: str = "") -> str:
    lines = textwrap.wrap(text, max(SHORTEST, WIDTH - column), break_long_words=False, break_on_hyphens=False)
    return "\n".join(prefix + line for line in lines) + ("\n" if prefix else "")


def is_ambiguous(text: str) -> bool:
    """Whether a parser may take the text, unquoted, for a number, a date, a Boolean or null."""
    return text.lower() in WORDS or bool(NUMBER.fullmatch(text) or DATE.fullmatch(text))
