"""How signals are written."""

from __future__ import annotations

from tgis_server.words.signals import signal_name


def test_a_signal_without_a_name_has_its_number():
    assert (signal_name(9), signal_name(40)) == ("SIGKILL", "signal 40")
