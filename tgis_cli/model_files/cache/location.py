"""Where the cache of models is: exactly where huggingface_hub looks in the same environment.

Written anew instead of asked for, as the library reads its environment once, at its first import, while a start, a plan
for another environment and ``tgis doctor`` ask about a given one. A test compares the two.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

from tgis_server import failures
from tgis_server.errors import UsageError

CACHE_VARIABLE = "HF_HUB_CACHE"
ORIGINAL_VARIABLE = "TRANSFORMERS_CACHE"  # no library knows it any more
DEPRECATED_VARIABLES = (ORIGINAL_VARIABLE, "HUGGINGFACE_HUB_CACHE")
REFERENCE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)


def find_cache_dir(environ: Mapping[str, str]) -> tuple[Path, str]:
    """The cache directory as an absolute path, and the variable that names it.

    Where a ``~`` cannot be expanded, as this user has no home, it stays, and the path is a relative one.

    Raises:
        UsageError: two variables name different directories.
    """
    given = {
        name: expand(environ[name], environ) for name in (CACHE_VARIABLE, *DEPRECATED_VARIABLES) if environ.get(name)
    }
    for name, path in given.items():
        if path != next(iter(given.values())):
            raise failures.CACHE_VARIABLES_DIFFER.error(name=name, other=next(iter(given)))
    # The library takes a variable of its own that is set to nothing at its word: it means the current directory.
    for name in (CACHE_VARIABLE, *DEPRECATED_VARIABLES):
        if name in given or (name in environ and name != ORIGINAL_VARIABLE):
            return to_absolute(given.get(name, "")), name
    home, source = find_hugging_face_home(environ)
    return to_absolute(expand(os.path.join(home, "hub"), environ)), source


def get_cache_dir(environ: Mapping[str, str]) -> Path:
    """The cache directory, for what has to write there or to name what is in it.

    Raises:
        UsageError: see :func:`find_cache_dir`, or nothing tells where it is.
    """
    path, _ = find_cache_dir(environ)
    if is_homeless(path):
        raise UsageError(f"HOME is not set, and user {os.getuid()} has no other: name the cache with {CACHE_VARIABLE}.")
    return path


def find_hugging_face_home(environ: Mapping[str, str]) -> tuple[str, str]:
    """The directory of all Hugging Face libraries, and the variable that names it."""
    if "HF_HOME" in environ:
        return expand(environ["HF_HOME"], environ), "HF_HOME"
    if "XDG_CACHE_HOME" in environ:
        return expand(os.path.join(environ["XDG_CACHE_HOME"], "huggingface"), environ), "XDG_CACHE_HOME"
    return expand(os.path.join(expand_user("~", environ), ".cache/huggingface"), environ), "HOME"


def expand(path: str, environ: Mapping[str, str]) -> str:
    """``~`` and variables, in this order."""

    def look_up(found: re.Match[str]) -> str:
        name = found[1].removeprefix("{").removesuffix("}")
        return environ.get(name, found[0])

    return REFERENCE.sub(look_up, expand_user(path, environ))


def expand_user(path: str, environ: Mapping[str, str]) -> str:
    """As :func:`os.path.expanduser`, in a given environment."""
    if not path.startswith("~"):
        return path
    name, slash, rest = path[1:].partition("/")
    try:
        if name:
            home = pwd.getpwnam(name).pw_dir
        else:
            home = environ["HOME"] if "HOME" in environ else pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # nobody that is known
        return path
    return f"{home.rstrip('/')}{slash}{rest}" or "/"


def to_absolute(path: str) -> Path:
    return Path(path) if is_homeless(Path(path)) else Path(path).absolute()


def is_homeless(path: Path) -> bool:
    """Whether a path is in the home of a user who has none."""
    return path.parts[:1] == ("~",)
