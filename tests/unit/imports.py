"""Which modules a command line of ``tgis`` imports."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import json, sys
from tgis_cli.{entry} import main
try: main()
except SystemExit as end: print(json.dumps([end.code, list(sys.modules)]))
"""


def run_and_list_imports(*arguments: str, entry: str = "__main__") -> tuple[Any, set[str]]:
    """The exit code, and the names of all imported modules.

    Args:
        entry: the module whose ``main`` runs: ``app`` for the commands' framework, whatever the line.
    """
    command = [sys.executable, "-c", PROGRAM.format(entry=entry), *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exit_code, modules = json.loads(output.splitlines()[-1])
    return exit_code, set(modules)
