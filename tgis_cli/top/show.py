"""The ways in which `tgis top` shows glances: a page that is drawn again and again, lines, or one page and the end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tgis_cli.clients.answer import to_json_line
from tgis_cli.terminal.capabilities import DIM, can_encode, get_width, has_color, is_capable
from tgis_cli.terminal.full_screen import FullScreen
from tgis_cli.top.glance import NO_ANSWER, Glance
from tgis_cli.top.page import BARS, KEYS, Style, make_page
from tgis_cli.top.watcher import Watcher
from tgis_server.errors import Unavailable

END_KEYS = ("q", "\x04")  # Ctrl-D


def show(watcher: Watcher, interval_s: float, *, is_once: bool, as_json: bool) -> None:
    """
    Raises:
        Unavailable: with ``is_once``, the server has stopped answering.
        OSError: the output cannot be written.
    """
    if is_once:
        show_once(watcher, interval_s, as_json=as_json)
    elif as_json or not (is_capable(sys.stdout, os.environ) and can_encode(sys.stdout, BARS)):
        show_lines(watcher, interval_s, as_json=as_json)
    else:
        show_page(watcher, interval_s)


def show_once(watcher: Watcher, interval_s: float, *, as_json: bool) -> None:
    """Look twice, which rates need, and print the second glance."""
    glances = look_again_and_again(watcher, interval_s)
    next(glances)
    glance = next(glances)
    if glance.state == NO_ANSWER:
        raise Unavailable(glance.reason)
    page = make_page(glance, get_width(sys.stdout), None, Style())
    print(to_json_line(glance.as_dict()) if as_json else "\n".join(line.rstrip() for line in page))


def show_lines(watcher: Watcher, interval_s: float, *, as_json: bool) -> None:
    """Print lines until a signal comes, or nobody reads them any more."""
    glances = look_again_and_again(watcher, interval_s)
    next(glances)  # it has no rates
    for glance in glances:
        print(to_json_line(glance.as_dict()) if as_json else glance.as_line(), flush=True)


def show_page(watcher: Watcher, interval_s: float) -> None:
    """Redraw the page until a key or a signal ends it."""
    style = Style(is_colored=has_color(sys.stdout, os.environ), has_graphs=True)
    screen = FullScreen(sys.stdout, sys.stdin)
    background = Background(watcher, interval_s, screen.wake)
    with screen.open():
        threading.Thread(target=background.run, name="top", daemon=True).start()
        while True:
            if glance := background.get_newest():
                columns, rows = screen.size
                screen.draw([*make_page(glance, columns, rows - 1, style), style.paint(KEYS, DIM)])
            try:
                if screen.wait_for_key() in END_KEYS:
                    return
            except EOFError:
                return


class Background:
    """Looks in a thread, so that keys work while a server does not answer."""

    def __init__(self, watcher: Watcher, interval_s: float, tell: Callable[[], None]) -> None:
        """
        Args:
            tell: called after each look.
        """
        self._watcher, self._interval_s, self._tell = watcher, interval_s, tell
        self._newest: Glance | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            for glance in look_again_and_again(self._watcher, self._interval_s):
                self._newest = glance
                self._tell()
        except BaseException as error:  # noqa: BLE001  the main thread raises it, once the terminal is restored
            self._error = error
            self._tell()

    def get_newest(self) -> Glance | None:
        """
        Raises:
            Exception: what ended the thread.
        """
        if self._error is not None:
            raise self._error
        return self._newest


def look_again_and_again(watcher: Watcher, interval_s: float) -> Iterator[Glance]:
    """A glance per interval, or at once after one that took longer."""
    due_at = time.monotonic()
    while True:
        yield watcher.look()
        due_at = max(due_at + interval_s, time.monotonic())
        time.sleep(max(0.0, due_at - time.monotonic()))
