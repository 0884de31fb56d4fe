"""Run a tier of the tests: first those that may run in parallel, in three workers, then the serial ones.

::

    python scripts/run_tests.py TIER [ARGUMENT of pytest...]

`make test` and `make acceptance` install first, then run this. The arguments go to both calls of pytest; choose tests
by path or with -k, because -m is taken. Exits with pytest's code; an interrupt skips the second call.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tgis_server.host.interpreter import make_command

TIERS = {"test": "not acceptance", "acceptance": "acceptance"}
# Three workers for two cores: tests spend a third of their time waiting. Collection puts long groups first.
IN_PARALLEL = ("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")
ALL_PASSED, SOME_FAILED, NONE_SELECTED = 0, 1, 5


def run_pytest(markers: str, arguments: list[str]) -> int:
    command = make_command("-m", "pytest", *arguments, "-m", markers)
    # Four processes import all tests, and their programs start hundreds of interpreters: keep the bytecode.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    print(f"\npytest {' '.join(arguments)} -m '{markers}'", flush=True)
    return subprocess.run(command, env=environ, check=False).returncode


def run_tier(tier: str, arguments: list[str]) -> int:
    """Return pytest's exit code for both calls; one of them may select no tests."""
    parallel = run_pytest(f"{TIERS[tier]} and not serial", [*IN_PARALLEL, *arguments])
    if parallel not in (ALL_PASSED, SOME_FAILED, NONE_SELECTED):
        return parallel
    serial = run_pytest(f"{TIERS[tier]} and serial", arguments)
    failed = [code for code in (parallel, serial) if code not in (ALL_PASSED, NONE_SELECTED)]
    return failed[0] if failed else min(parallel, serial)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in TIERS:
        sys.exit(f"usage: run_tests.py {'|'.join(TIERS)} [ARGUMENT of pytest...]")
    signal.signal(signal.SIGINT, lambda *_: None)  # pytest gets the signal too, and handles it
    started_at = time.monotonic()
    code = run_tier(sys.argv[1], sys.argv[2:])
    print(f"\nThe tier '{sys.argv[1]}' took {time.monotonic() - started_at:.0f} s.")
    return code


if __name__ == "__main__":
    sys.exit(main())
