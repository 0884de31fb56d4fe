"""Run a tier of the tests: first what may run beside other tests, in three workers, then alone what asserts seconds.

::

    python scripts/run_tests.py TIER [ARGUMENT of pytest...]

`make test` and `make acceptance` install first, then run this. The arguments go to both calls; choose tests by path
or with -k, as -m is taken. Exits with pytest's code; both calls are made, unless the first was interrupted.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tgis_server.host.interpreter import make_command

TIERS = {"test": "not acceptance", "acceptance": "acceptance"}
# Three for two cores: tests wait for processes a third of their time. As collected: long groups come first.
BESIDE_OTHERS = ("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")
ALL_PASSED, SOME_FAILED, NONE_SELECTED = 0, 1, 5


def run_pytest(markers: str, arguments: list[str]) -> int:
    command = make_command("-m", "pytest", *arguments, "-m", markers)
    print(f"\npytest {' '.join(arguments)} -m '{markers}'", flush=True)
    return subprocess.run(command, check=False).returncode


def run_tier(tier: str, arguments: list[str]) -> int:
    """pytest's exit code for both calls; none of them may be without tests."""
    beside = run_pytest(f"{TIERS[tier]} and not serial", [*BESIDE_OTHERS, *arguments])
    if beside not in (ALL_PASSED, SOME_FAILED, NONE_SELECTED):
        return beside
    alone = run_pytest(f"{TIERS[tier]} and serial", arguments)
    failed = [code for code in (beside, alone) if code not in (ALL_PASSED, NONE_SELECTED)]
    return failed[0] if failed else min(beside, alone)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in TIERS:
        sys.exit(f"usage: run_tests.py {'|'.join(TIERS)} [ARGUMENT of pytest...]")
    signal.signal(signal.SIGINT, lambda *_: None)  # pytest gets it too, and ends in its own way
    began_at = time.monotonic()
    code = run_tier(sys.argv[1], sys.argv[2:])
    print(f"\nThe tier '{sys.argv[1]}' took {time.monotonic() - began_at:.0f} s.")
    return code


if __name__ == "__main__":
    sys.exit(main())
