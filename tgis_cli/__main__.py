"""The console scripts. Each sets its signal handlers before any heavy import, so that Ctrl-C never shows a traceback.

Probes run often: ``tgis health`` bypasses the command-line framework, and so does ``tgis generate`` where it can.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """``tgis``, and in its place a program of the original that is named first.

    The original's image has no entry point, and ours has this one: a pod's `args` may begin with a program.
    """
    if program := {"text-generation-launcher": launcher, "text-generation-server": server}.get("".join(sys.argv[1:2])):
        del sys.argv[0]
        program()
        return
    end_quietly(is_launch=sys.argv[1:2] == ["launch"])
    if sys.argv[1:2] == ["health"]:
        from tgis_cli.clients import probe

        sys.exit(probe.main(sys.argv[2:], os.environ))
    if sys.argv[1:2] == ["generate"]:
        from tgis_cli.clients import quick_line

        quick_line.run_quickly(sys.argv[2:])
    from tgis_cli.app import main as run_command

    run_command()


def launcher() -> None:
    """``text-generation-launcher``."""
    end_quietly(is_launch=True)
    from tgis_cli import legacy

    legacy.launcher()


def server() -> None:
    """``text-generation-server``."""
    end_quietly(is_launch=sys.argv[1:2] == ["serve"])
    from tgis_cli import legacy

    legacy.server()


def end_quietly(*, is_launch: bool) -> None:
    """Let stop signals end this process without a traceback; a launch, which has started nothing yet, exits with 0.

    SIGHUP is blocked for a launch until the options say what the signal means. Ignored signals stay ignored. The first
    process of a container needs handlers: the kernel drops signals that it does not handle.
    """
    if is_launch:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            continue
        if is_launch:
            signal.signal(number, lambda *_: os._exit(0))
        elif os.getpid() == 1:
            signal.signal(number, lambda number, _: os._exit(128 + number))
        else:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
