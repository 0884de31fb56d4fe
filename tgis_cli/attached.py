"""Entry point of the launcher of ``tgis run``: ``python -m tgis_cli.attached PARENT ARGUMENT...``.

PARENT is the process id of ``tgis run``, and the arguments are those of ``tgis launch``. When that process ends,
whatever ends it, the kernel sends this one SIGTERM, so that it stops its server and removes its run directory.
"""

from __future__ import annotations

import signal
import sys

from tgis_cli.__main__ import end_quietly
from tgis_server.child import kill_with_parent


def main() -> None:
    end_quietly(is_launch=True)
    kill_with_parent(int(sys.argv[1]), signal.SIGTERM)  # before any heavy import
    from tgis_cli.app import main as run_command

    sys.argv[1:2] = ["launch"]
    run_command()


if __name__ == "__main__":
    main()
