"""The directory of the model cache: exactly where huggingface_hub looks in the same environment.

Reimplemented, because the library reads the environment only once, at its first import, while a launch, a plan and
``tgis doctor`` need the answer for a given environment. A test compares the two.
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
ORIGINAL_VARIABLE = "TRANSFORMERS_CACHE"  # no longer read by any library
DEPRECATED_VARIABLES = (ORIGINAL_VARIABLE, "HUGGINGFACE_HUB_CACHE")
REFERENCE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)


def find_cache_dir(environ: Mapping[str, str]) -> tuple[Path, str]:
    """The cache directory as an absolute path, and the variable that names it.

    If this user has no home, a ``~`` is not expanded and the path is relative.

    Raises:
        UsageError: two variables name different directories.
    """
    given = {
        name: expand(environ[name], environ) for name in (CACHE_VARIABLE, *DEPRECATED_VARIABLES) if environ.get(name)
    }
    for name, path in given.items():
        if path != next(iter(given.values())):
            raise failures.CACHE_VARIABLES_DIFFER.error(name=name, other=next(iter(given)))
    # The library takes its own variables literally when they are empty: they mean the current directory.
    for name in (CACHE_VARIABLE, *DEPRECATED_VARIABLES):
        if name in given or (name in environ and name != ORIGINAL_VARIABLE):
            return to_absolute(given.get(name, "")), name
    home, source = find_hugging_face_home(environ)
    return to_absolute(expand(os.path.join(home, "hub"), environ)), source


def get_cache_dir(environ: Mapping[str, str]) -> Path:
    """The cache directory, for commands that cannot do without one.

    Raises:
        UsageError: see :func:`find_cache_dir`; or this user has no home to put it in.
    """
    path, _ = find_cache_dir(environ)
    if is_homeless(path):
        raise UsageError(
            f"HOME is not set, and user {os.getuid()} has no home directory: name the cache with {CACHE_VARIABLE}."
        )
    return path


def find_hugging_face_home(environ: Mapping[str, str]) -> tuple[str, str]:
    """The directory of all Hugging Face libraries, and the variable that names it."""
    if "HF_HOME" in environ:
        return expand(environ["HF_HOME"], environ), "HF_HOME"
    if "XDG_CACHE_HOME" in environ:
        return expand(os.path.join(environ["XDG_CACHE_HOME"], "huggingface"), environ), "XDG_CACHE_HOME"
    return expand(os.path.join(expand_user("~", environ), ".cache/huggingface"), environ), "HOME"


def expand(path: str, environ: Mapping[str, str]) -> str:
    """Expand ``~``, then variables."""

    def look_up(found: re.Match[str]) -> str:
        name = found[1].removeprefix("{").removesuffix("}")
        return environ.get(name, found[0])

    return REFERENCE.sub(look_up, expand_user(path, environ))


def expand_user(path: str, environ: Mapping[str, str]) -> str:
    """Like :func:`os.path.expanduser`, for a given environment."""
    if not path.startswith("~"):
        return path
    name, slash, rest = path[1:].partition("/")
    try:
        if name:
            home = pwd.getpwnam(name).pw_dir
        else:
            home = environ["HOME"] if "HOME" in environ else pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # an unknown user
        return path
    return f"{home.rstrip('/')}{slash}{rest}" or "/"


def to_absolute(path: str) -> Path:
    return Path(path) if is_homeless(Path(path)) else Path(path).absolute()


def is_homeless(path: Path) -> bool:
    """Whether a path is relative to a home directory that the user does not have."""
    return path.parts[:1] == ("~",)
