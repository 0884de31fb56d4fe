"""The commands of a prompt loop: their names, what is typed after them, their help, and what Tab completes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tgis_cli.clients.parameter_table import PARAMETERS
from tgis_server.errors import UsageError
from tgis_server.words.close_words import find_close, or_list

SLASH, QUOTES = "/", '"""'
DEFAULT = "default"  # as the value in /set: resets the parameter


@dataclass(frozen=True, slots=True)
class Command:
    """A line that begins with a slash, in its parts."""

    name: str  # with its slash
    rest: str  # what follows, without blanks around it


HELP = {
    "/continue": "go on from the last text and answer",
    "/retry": "complete the last text again",
    "/set": "show all parameters",
    "/set NAME VALUE": f"set one, such as /set top_k 5; {DEFAULT} resets it",
    "/show": "show the model, the server's limits, and the parameters you have set",
    "/help": "show this list",
    "/bye": "leave; so does Ctrl-D",
    QUOTES: "begin and end a text of several lines",
    "//TEXT": "complete a text that begins with one slash",
    "Ctrl-C": "end the answer, or clear the line",
}
NAMES = tuple(dict.fromkeys(form.split()[0] for form in HELP if re.match(r"/\w", form)))
OTHER_WORDS = {"/exit": "/bye", "/quit": "/bye", "/q": "/bye", "/?": "/help", "/h": "/help"}  # of other programs


def parse_command(line: str) -> Command | None:
    """
    Args:
        line: one line as typed.

    Returns:
        ``None`` if the line is a text.

    Raises:
        UsageError: no command has this name.
    """
    words = line.split(maxsplit=1) or [""]
    name = words[0].lower()
    name = OTHER_WORDS.get(name, name)
    # A line with blanks before the slash is a text, unless the word is a command.
    is_command = line.startswith(SLASH) or name in NAMES
    if not is_command or line.startswith(2 * SLASH) or "\n" in line:
        return None
    if name not in NAMES:
        raise UsageError(f"No such command: {words[0]}; {suggest(name)}")
    return Command(name, words[1].strip() if len(words) > 1 else "")


def suggest(name: str) -> str:
    """Suggest a command, or ``/set`` if a parameter's name follows the slash."""
    known = dict(zip(NAMES, NAMES, strict=True)) | {f"{SLASH}{each}": f"/set {each}" for each in PARAMETERS}
    if close := find_close(name, known):
        return f"did you mean {or_list([known[each] for each in close])}?"
    return "/help lists the commands; type two slashes to begin a text with one."


def parse_setting(rest: str) -> tuple[str, str]:
    """Name and value in ``/set``; ``top_k 5`` and ``top_k=5`` mean the same. A missing value is empty."""
    match = re.fullmatch(r"([^\s=]+)(?:\s*=\s*|\s+)?(.*)", rest, re.DOTALL)
    return (match[1], match[2]) if match else (rest, "")


def complete_word(before: str, word: str) -> list[str]:
    """Completions of a word: commands at the start of the line, parameters and their values after ``/set``.

    Args:
        before: the line up to the word.
    """
    words = before.split()
    if not words:
        return [f"{name} " if name == "/set" else name for name in NAMES if word and name.startswith(word.lower())]
    if words[0] != "/set" or len(words) > 2:
        return []
    if len(words) == 1:
        wanted = word.replace("-", "_")
        return [f"{name} " for name in PARAMETERS if name.startswith(wanted)]
    parameter = PARAMETERS.get(words[1].replace("-", "_"))
    values = ["on", "off"] if parameter is not None and parameter.kind is bool else []
    return [value for value in (*values, DEFAULT) if value.startswith(word)]
