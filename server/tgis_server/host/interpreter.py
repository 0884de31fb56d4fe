"""How Python processes of ours are started, and where they import from: never from the current directory.

``python -m`` puts that directory first on the module path, and so does an empty entry of ``PYTHONPATH`` (a colon at its
beginning or end): beside somebody else's ``shutil.py`` a process of ours would run it, with all that it may do. What
``PYTHONPATH`` names otherwise stays, as that is how libraries are put before others.

Runs before everything else in a process, so it imports only what is in the interpreter itself.
"""

import os
import sys
from _collections_abc import Mapping  # collections.abc is a file

SCRIPTS = ("tgis", "grpc_healthcheck", "text-generation-launcher", "text-generation-server")


def make_command(*arguments: str) -> tuple[str, ...]:
    """A command line for a child: ``-m MODULE``, ``-c PROGRAM`` or a file, and what it is given.

    The child's environment is that of :func:`make_environment`.
    """
    return (sys.executable, "-P", *arguments)


def make_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a child, and for all Python processes that it starts in turn."""
    safe = dict(environ) | {"PYTHONSAFEPATH": "1"}
    places = [place for place in list_places(safe) if not means_current_directory(place)]
    safe.pop("PYTHONPATH", None)
    return safe | ({"PYTHONPATH": os.pathsep.join(places)} if places else {})


def list_places(environ: Mapping[str, str]) -> list[str]:
    """The entries of ``PYTHONPATH``; none if it is empty or not set, as the interpreter sees it."""
    places = environ.get("PYTHONPATH", "")
    return places.split(os.pathsep) if places else []


def means_current_directory(place: str) -> bool:
    """Whether an entry of ``PYTHONPATH`` is wherever a process happens to be."""
    return os.path.normpath(place) == os.curdir


def get_current_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed: nothing can be imported from it
        return ""


def leave_current_directory() -> None:
    """Take the current directory off this process's module path, if the process is one of our programs.

    As a library, in somebody else's process, we leave the path as it is.
    """
    is_module = sys.argv[:1] == ["-m"]  # while the interpreter looks for the module that it is to run
    if not is_module and os.path.basename(sys.argv[0] if sys.argv else "") not in SCRIPTS:
        return
    unwanted = {"", os.curdir}
    places = list_places(os.environ)
    if (is_module and not sys.flags.safe_path) or any(map(means_current_directory, places)):
        unwanted |= {get_current_directory()} - set(places)
    sys.path[:] = [place for place in sys.path if place not in unwanted]
