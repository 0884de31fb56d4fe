"""A row of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tgis_server.errors import TgisError
from tgis_server.words.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """One row.

    Args:
        name: a short slug, unique, for people who search the docs or their logs.
        evidence: how the failure is recognised, for the docs.
        sentence: a template of :meth:`str.format`; values whose names end in ``_bytes`` are numbers of bytes.
        kind: the class of the error, which determines the exit code.
    """

    name: str
    evidence: str
    sentence: str
    kind: type[TgisError]

    def format(self, **values: Any) -> str:
        """The sentence with its values."""
        sizes = {name: format_bytes(value) for name, value in values.items() if name.endswith("_bytes")}
        return self.sentence.format(**values | sizes)

    def error(self, **values: Any) -> TgisError:
        """The error to raise."""
        return self.kind(self.format(**values))
