"""Characters that would control a terminal instead of being shown."""

from __future__ import annotations

# Escapes as in JSON, for C0 except tab and line end, DEL, C1, separators that some programs take for line ends, and
# the overrides and isolates that reorder the text around them. A sequence of several characters is harmless once its
# first one, a control character, is shown.
CONTROLS = {
    code: f"\\u{code:04x}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        *(0x2028, 0x2029),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    )
    if chr(code) not in "\t\n"
}
CONTROLS[ord("\r")] = "\\r"


def escape_controls(text: str) -> str:
    """The text with its control characters made visible: ``\\u001b``. Tabs and line ends stay."""
    return text.translate(CONTROLS)


def is_plain_line(text: str) -> bool:
    """Whether a terminal shows the text as it is, in one line: for names that would mean something else if escaped."""
    return escape_controls(text) == text and "\n" not in text and "\t" not in text
