"""How our Python processes are started, so that they never import from the current directory.

``python -m`` puts that directory first on the module path, and so does an empty entry of ``PYTHONPATH`` (a colon at its
start or end): next to someone else's ``shutil.py``, our process would run that file with its own rights. The other
entries of ``PYTHONPATH`` stay, because they are how users put one library before another.

This module runs before anything else in a process, so it imports only built-in modules.
"""

import os
import sys
from _collections_abc import Mapping  # collections.abc would be read from a file

SCRIPTS = ("tgis", "grpc_healthcheck", "text-generation-launcher", "text-generation-server")


def make_command(*arguments: str) -> tuple[str, ...]:
    """A command line for a child: ``-m MODULE``, ``-c PROGRAM`` or a file, with its arguments.

    The environment comes from :func:`make_environment`.
    """
    return (sys.executable, "-P", *arguments)


def make_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a child and all Python processes that it starts."""
    safe = dict(environ) | {"PYTHONSAFEPATH": "1"}
    places = [place for place in list_places(safe) if not means_current_directory(place)]
    safe.pop("PYTHONPATH", None)
    return safe | ({"PYTHONPATH": os.pathsep.join(places)} if places else {})


def list_places(environ: Mapping[str, str]) -> list[str]:
    """The entries of ``PYTHONPATH``, as the interpreter splits it; none if it is empty or not set."""
    places = environ.get("PYTHONPATH", "")
    return places.split(os.pathsep) if places else []


def means_current_directory(place: str) -> bool:
    """Whether an entry of ``PYTHONPATH`` stands for the current directory."""
    return os.path.normpath(place) == os.curdir


def get_current_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # the directory was removed: nothing can be imported from it
        return ""


def leave_current_directory() -> None:
    """Remove the current directory from the module path of our own programs.

    If another program imports this package as a library, that program's path is left alone.
    """
    is_module = sys.argv[:1] == ["-m"]  # true while the interpreter looks for the module to run
    if not is_module and os.path.basename(sys.argv[0] if sys.argv else "") not in SCRIPTS:
        return
    unwanted = {"", os.curdir}
    places = list_places(os.environ)
    if (is_module and not sys.flags.safe_path) or any(map(means_current_directory, places)):
        unwanted |= {get_current_directory()} - set(places)
    sys.path[:] = [place for place in sys.path if place not in unwanted]
