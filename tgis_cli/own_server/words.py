"""What the words and flags of `tgis run` mean: a model, texts, and the options of `tgis launch`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.prompts import STDIN, EmptyInput
from tgis_cli.model_files import DEMO, get_cache_dir, suggest_demo
from tgis_cli.model_files.cache.model_dir import list_folders
from tgis_cli.own_server.launcher import LaunchOptions
from tgis_server.errors import UsageError
from tgis_server.options import options

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
BARE_WORD = re.compile(r"[A-Za-z]+")
PATHS = ("/", "./", "../", "~")
DEFAULT_LIMIT = next(option.default for option in options() if option.name == "max_new_tokens")


def split_words(model: str | None, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The model, and the words of the text.

    Args:
        model: the first word of the command line, if there is one. If it can only be a text, no model is given.
    """
    if model is None or not is_text(model):
        return model, list(words)
    return None, [model, *words]


def is_text(word: str) -> bool:
    """Whether a word cannot name a model: it looks like neither a hub id nor a path, and is not a directory."""
    if word == STDIN:
        return True
    is_name = word == "" or HUB_ID.fullmatch(word) or word.startswith(PATHS)
    return not is_name and not os.path.exists(word)


def explain_word(model: str | None, words: Sequence[str], sentence: str) -> str:
    """The sentence for a model that cannot be served, or a different one if its name may have been meant as a text."""
    if model is None or not may_be_text(model):
        return sentence
    if words:
        return f"{sentence} If {model} begins the text, quote the whole text."
    question = f"did you mean {DEMO}? If" if suggest_demo(model) else "if"
    return f"There is no model {model}; {question} that is the text, pipe it in: echo {model} | tgis run."


@contextmanager
def empty_input_explained(model: str | None) -> Iterator[None]:
    """Say that a word was taken as the model if no text follows it, on standard input either."""
    try:
        yield
    except EmptyInput:
        if model is None or not may_be_text(model):
            raise
        raise UsageError(
            f"Standard input is empty, and {model} was taken as the model: to complete {model} with the demo model, "
            f"pipe it in: echo {model} | tgis run."
        ) from None


def may_be_text(model: str) -> bool:
    """Whether a word that was taken as the model may have been meant as a text: no model here has that name."""
    if model == DEMO or not BARE_WORD.fullmatch(model) or os.path.exists(model):
        return False
    return model not in list_folders(get_cache_dir(os.environ))


def make_options(
    model: str | None, flags: Mapping[str, str | bool | None], config_file: Path | None, parameters: Parameters
) -> LaunchOptions:
    """The options to start the server with. They allow the requested length, because the server is for this command."""
    more: dict[str, str | None] = {"model_name": model}
    if (parameters.max_new_tokens or 0) > DEFAULT_LIMIT:
        more["max_new_tokens"] = str(parameters.max_new_tokens)
    return LaunchOptions({**flags, **more}, config_file)
