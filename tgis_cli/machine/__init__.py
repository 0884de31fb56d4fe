"""Facts about this machine, found without torch."""

from tgis_cli.machine.facts import Cpu, Gpu, Machine, probe_machine

__all__ = ["Cpu", "Gpu", "Machine", "probe_machine"]
