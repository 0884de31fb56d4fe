"""The description of a single option."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tgis_server.words.url_credentials import mask_credentials

if TYPE_CHECKING:
    from tgis_server.options.table import ServeConfig


@dataclass(frozen=True, slots=True)
class Opt:
    """Everything about an option except its name, type and default."""

    help: str
    group: str
    short: str = ""  # one-letter flag
    env: str = ""  # default: the name in upper case
    also_env: str = ""  # another variable, read if the first is not set
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()
    aliases: Mapping[str, str] | None = None  # other spellings of choices
    read: Callable[[str], str] | None = None  # extracts the choice from a longer lower-case text
    refusal: str = ""  # the original's message for a value out of range; {} is the value
    unit: str = ""  # "bytes": 512MiB, 2GiB or a number
    takes_value: bool = False  # a boolean spelled --flag true, as in the original's launcher
    hidden: bool = False  # left out of --help, kept in the docs
    has_credentials: bool = False  # a URL whose user and password must not be shown or written
    unset: str = ""  # the value used if the option is not given, in words


@dataclass(frozen=True, slots=True)
class Option:
    """An option as the command line, the docs and the parsers use it."""

    name: str
    type: type  # str, int, float, bool or Path
    default: Any
    opt: Opt

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def argument(self) -> str:
        """Its name where it is given without a flag: ``MODEL`` for ``model_name``."""
        return self.name.removesuffix("_name").upper()

    @property
    def env(self) -> str:
        return self.opt.env or self.name.upper()

    def find_variable(self, environ: Mapping[str, str]) -> str | None:
        """The variable that sets this option; blank ones are ignored."""
        return next((name for name in (self.env, self.opt.also_env) if environ.get(name, "").strip()), None)

    def get_shown(self, config: ServeConfig) -> Any:
        """The value as it may be shown and written, without credentials."""
        value = getattr(config, self.name)
        return mask_credentials(value) if value and self.opt.has_credentials else value
