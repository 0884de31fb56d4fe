"""The commands of ``tgis`` by name: listed and completed without importing them, imported to be run."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand

from tgis_cli.terminal.command import dress

# name -> what it does; the module tgis_cli.commands.NAME has a Typer app called `app`
COMMANDS = {
    "launch": "Serve a model.",
    "run": "Try a model: serve it, complete text, and stop.",
    "ps": "List the running servers.",
    "top": "Watch a running server.",
    "stop": "Stop running servers.",
    "plan": "Show what a model needs, and whether it runs here or on given devices.",
    "manifest": "Print what serves a model in a Kubernetes cluster.",
    "doctor": "Check this machine and suggest fixes.",
    "download-weights": "Download a model, and convert it if needed.",
    "models": "List, check and remove the models in the local cache.",
    "bundle": "Pack a model with its checksums, for sites without a network.",
    "unbundle": "Check a packed model and put it into the local cache.",
    "convert-to-safetensors": "Convert PyTorch weights to safetensors.",
    "convert-to-fast-tokenizer": "Make the tokenizer.json that serving needs.",
    "convert-to-onnx": "Export a model to ONNX.",
    "health": "Check the health of a running server.",
    "generate": "Complete text with a running server.",
    "tokenize": "Show how text is split into tokens.",
    "bench": "Measure a server as its users experience it.",
    "migrate": "Check manifests and scripts that start the original server.",
    "config": "Show every option, its value and origin, or write a commented config file.",
    "version": "Print versions of TGIS and of what it runs on.",
}


# How the help groups them, in this order; others follow under "Commands"
SECTIONS = {
    "Serve a model": ("run", "launch", "ps", "top", "stop"),
    "Ask a server": ("generate", "tokenize", "health"),
    "Measure": ("bench",),
    "Get and keep models": (
        "download-weights",
        "models",
        "bundle",
        "unbundle",
        "convert-to-safetensors",
        "convert-to-fast-tokenizer",
        "convert-to-onnx",
    ),
    "Plan, check and configure": ("plan", "manifest", "doctor", "config", "migrate", "version"),
}

# The commands whose --json prints events, one object per line, the last of which is "done" or "failed"
PRINTS_EVENTS = ("download-weights", "bundle", "unbundle", "convert-to-safetensors")


def load_command(name: str) -> Any:
    """Import a command's module and build the command."""
    module = importlib.import_module(f"tgis_cli.commands.{name.replace('-', '_')}")
    dress(module.app)
    command = typer.main.get_command(module.app)
    command.name = name
    return command


def make_stand_in(name: str, summary: str) -> Any:
    """A stand-in that carries the name and summary of a command for listings and shell completion."""
    return TyperCommand(name, help=summary, short_help=summary, add_help_option=False)
