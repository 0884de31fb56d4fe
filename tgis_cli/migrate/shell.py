"""Env files and command lines: ``KEY=value``, ``docker run ...``, ``text-generation-launcher ...``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from tgis_cli.migrate.containers import (
    EXECUTABLES,
    Container,
    Given,
    LocatedText,
    Surroundings,
    is_reference,
    line_of,
    to_int,
)

ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
NAME_ONLY = re.compile(r"[A-Za-z_]\w*")
ENGINES = ("docker", "podman", "nerdctl")
# Options of `docker run` that take no value; all others take one.
DOCKER_SWITCHES = re.compile(
    "--(detach|interactive|tty|rm|init|privileged|publish-all|read-only|no-healthcheck|oom-kill-disable|quiet|replace|"
    "rmi|env-host|http-proxy|tls-verify|sig-proxy|disable-content-trust|help)"
)
DOCKER_LETTERS = "ditPq"
DOCKER_SHORT = {"e": "--env", "p": "--publish", "v": "--volume"}
CONTINUED = "\0"  # a word in place of a line continuation


def is_env_file(text: str) -> bool:
    """Whether a script has only assignments, names and comments, and at least one assignment."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    is_assigned = all(ASSIGNMENT.match(line) or NAME_ONLY.fullmatch(line) for line in lines)
    return is_assigned and any(map(ASSIGNMENT.match, lines)) and not is_command_line(text)


def is_command_line(text: str) -> bool:
    """Whether a line starts a container or one of the executables."""
    return any(find_docker_run(words) or find_executable(words) is not None for words in read_commands(text))


def read_env_file(text: str) -> list[Given]:
    """Parse values as Docker does, but remove quotes around them."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if match := ASSIGNMENT.fullmatch(line.strip()):
            name, value = match[1], match[2].strip()
            if value[:1] in ("'", '"') and value[-1:] == value[:1]:
                value = value[1:-1]
            found.append(give(name, value, number))
        elif NAME_ONLY.fullmatch(line.strip()):
            found.append(Given(line.strip(), None, number, "the shell"))
    return found


def give(name: str, value: str, line: int) -> Given:
    return Given(name, None, line, value) if is_reference(value) else Given(name, value, line)


def read_commands(text: str) -> Iterator[list[str]]:
    """Yield commands as words with their lines; continued lines are joined, and ``;``, ``&`` and ``|`` end a command.

    Text that a shell would reject is left out.
    """
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        pending, start = (pending + line, start) if pending else (line, number)
        if line.endswith("\\"):
            pending = f"{pending[:-1]} {CONTINUED} "
            continue
        lexer = shlex.shlex(pending, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quote that is closed on a later line
            pending += "\n"
            continue
        pending = ""
        command: list[str] = []
        for word in [*words, ";"]:
            if word and set(word) <= set(";&|"):
                if command:
                    yield command
                command = []
            elif word != CONTINUED:
                command.append(LocatedText(word.replace(f" {CONTINUED} ", " "), start))
            start += word.count(CONTINUED) + word.count("\n")


def find_executable(words: list[str]) -> int | None:
    """Index of one of the original's executables, unless it is another program's argument."""
    for index, word in enumerate(words):
        if word.rsplit("/", 1)[-1] in EXECUTABLES:
            return index
        if not ASSIGNMENT.fullmatch(word) and word not in ("exec", "env", "sudo", "nohup", "$"):
            return None
    return None


def find_docker_run(words: list[str]) -> int | None:
    """Index of ``run`` in ``docker run``."""
    for index, word in enumerate(words):
        if word.rsplit("/", 1)[-1] in ENGINES:
            return words.index("run", index) if "run" in words[index:] else None
    return None


def read_command_lines(text: str, file: str, directory: Path) -> list[Container]:
    """Containers and executables that a script or command line starts, with the variables exported before them."""
    variables: dict[str, str] = {}
    exported: dict[str, Given] = {}
    found = []
    for raw in read_commands(text):
        line = line_of(raw[0])
        words: list[str] = [LocatedText(expand(word, variables), line_of(word)) for word in raw]
        is_export = words[0] == "export"
        if all(map(ASSIGNMENT.fullmatch, words[is_export:])):
            for name, value in map(split_assignment, words[is_export:]):
                variables[name] = value
                exported[name] = give(name, value, line)
        elif run := find_docker_run(words):
            found.append(read_docker_run(words[run + 1 :], file, line, directory))
        elif (start := find_executable(words)) is not None:
            own = [give(*split_assignment(word), line_of(word)) for word in words[:start] if "=" in word]
            title = words[start].rsplit("/", 1)[-1]
            found.append(Container(file, title, line, [*exported.values(), *own], argv=words[start:], around=None))
    return found


def expand(word: str, variables: Mapping[str, str]) -> str:
    """Replace ``$NAME`` and ``${NAME}`` of known variables, and ``${NAME:-default}`` by its default."""

    def replace(match: re.Match[str]) -> str:
        name, default = match[1] or match[2], match[3]
        return variables.get(name, default if default is not None else match[0])

    return re.sub(r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*))?\})", replace, word)


def split_assignment(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def read_docker_run(words: list[str], file: str, line: int, directory: Path) -> Container:
    """The container that the words after ``docker run`` start."""
    options, rest = split_docker_options(words)
    around = Surroundings("--stop-timeout", None)
    env: list[Given] = []
    entrypoint: list[str] = []
    for name, value in options:
        match name:
            case "--env" if "=" in value:
                env.append(give(*split_assignment(value), line_of(value)))
            case "--env":
                env.append(Given(value, None, line_of(value), "the shell"))
            case "--env-file":
                add_env_file(env, around, directory / value)
            case "--publish":
                around.ports += filter(None, [to_int(value.rsplit(":", 1)[-1].split("/")[0])])
            case "--read-only":
                around.is_root_read_only = value != "false"
            case "--tmpfs" | "--volume" if not value.endswith(":ro"):
                around.writable.append(value.split(":")[0 if name == "--tmpfs" else -1])
            case "--mount" if "readonly" not in value:
                around.writable += re.findall(r"(?:target|dst|destination)=([^,]+)", value)
            case "--shm-size":
                around.has_shared_memory = True
            case "--ipc" if value == "host":
                around.has_shared_memory = True
            case "--gpus":
                around.num_gpus = count_gpus(value)
            case "--stop-timeout" if (seconds := to_int(value)) is not None:
                around.grace_s = seconds
            case "--entrypoint":
                entrypoint = [value]
            case _:
                pass
    image = rest[0] if rest else ""
    return Container(file, f"container of {image}", line, env, image, [*entrypoint, *rest[1:]], around)


def count_gpus(value: str) -> int | None:
    """``2``, or the number of devices in ``"device=0,1"``; ``None`` for ``all``."""
    value = value.strip("\"'")
    if value.startswith("device="):
        return value.count(",") + 1
    return to_int(value)


def add_env_file(env: list[Given], around: Surroundings, file: Path) -> None:
    """Put the file's variables before those given one by one, which override them."""
    try:
        env[:0] = [
            Given(given.name, given.value, 0, given.source) for given in read_env_file(file.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError):  # a null byte in its name, or not text
        around.missing.append(f"the env file {file}")


def split_docker_options(words: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Split into options with their values, and the image with its arguments."""
    options: list[tuple[str, str]] = []
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word.startswith("--"):
            name, has_value, value = word.partition("=")
            if not has_value and not DOCKER_SWITCHES.fullmatch(name) and rest:
                value = rest.pop(0)
            options.append((name, LocatedText(value, line_of(word))))
            continue
        letters = word[1:].lstrip(DOCKER_LETTERS)  # -it, -dp 8033:8033, -eNAME=value
        if letters:
            value = letters[1:].removeprefix("=") or (rest.pop(0) if rest else "")
            options.append((DOCKER_SHORT.get(letters[0], "-" + letters[0]), LocatedText(value, line_of(word))))
    return options, rest
