"""Facts about this machine, found without torch, and the checks that are made before anything starts."""

from tgis_cli.machine.facts import Cpu, Gpu, Machine, probe_machine

__all__ = ["Cpu", "Gpu", "Machine", "probe_machine"]
