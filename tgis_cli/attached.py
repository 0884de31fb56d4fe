"""Entry point of the launcher of ``tgis run``: ``python -m tgis_cli.attached PARENT OPTIONS``.

PARENT is the process id of ``tgis run``. OPTIONS is a JSON object with the ``flags`` of ``tgis launch`` by option name,
its ``config_file``, and whether it ``is_verbose``: without a command line to read, the launcher starts sooner. When the
parent ends, whatever ends it, the kernel sends this process SIGTERM, so that it stops its server and removes its run
directory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from tgis_cli.__main__ import end_quietly
from tgis_server.child import kill_with_parent


def main() -> None:
    end_quietly(is_launch=True)
    kill_with_parent(int(sys.argv[1]), signal.SIGTERM)  # before any heavy import
    options = json.loads(sys.argv[2])
    flags, config_file = options["flags"], options["config_file"] and Path(options["config_file"])
    from tgis_cli.launch.errors import errors_in_termination_log
    from tgis_cli.launch.serve import run_launch
    from tgis_cli.terminal.exits import errors_as_exit_codes
    from tgis_server.options import Argument

    if flags["model_name"] is not None:
        flags["model_name"] = Argument(flags["model_name"])  # JSON has no such type
    with errors_as_exit_codes(debug=False), errors_in_termination_log(flags, os.environ, config_file):
        raise SystemExit(run_launch(flags, config_file, is_verbose=options["is_verbose"], is_attached=True))


if __name__ == "__main__":
    main()
