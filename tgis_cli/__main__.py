"""The console script ``tgis``. Probes run often: ``tgis health`` takes a short way, past the commands' framework."""

from __future__ import annotations

import os
import sys


def main() -> None:
    if sys.argv[1:2] == ["health"]:
        from tgis_cli import probe

        sys.exit(probe.main(sys.argv[2:], os.environ))
    from tgis_cli.app import main as run_command

    run_command()


if __name__ == "__main__":
    main()
