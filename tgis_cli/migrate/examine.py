"""Judge a container's settings one by one and together, and advise on its surroundings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from tgis_cli.decide.legacy_settings import BY_NAME, OPTIONS_BY_ENV, SETTINGS, Setting, Treatment
from tgis_cli.migrate.advice import Advice, advise, advise_on_secrets
from tgis_cli.migrate.command import Command, parse_command
from tgis_cli.migrate.containers import Container, Given
from tgis_cli.migrate.model_family import FindModel, explain_unserved
from tgis_cli.model_files import find_cache_dir
from tgis_server import failures
from tgis_server.errors import UsageError
from tgis_server.options import LoadedConfig, Option, find_conflicts, merge_options, options, parse_value

UNKNOWN = "unknown"
MODEL = "model_name"
CLOSE = 0.86  # MAX_NEW_TOKEN is close to MAX_NEW_TOKENS, but TOKEN_PATH is not close to TOKENIZER_PATH
TODO = {
    Treatment.NO_EFFECT: "Remove it when convenient.",
    Treatment.NOT_YET: "Keep the original where this is needed.",
    Treatment.REFUSED: "Correct or remove it.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A setting and its effect here."""

    name: str
    value: str  # in parentheses: its source, if the value is unknown
    line: int
    verdict: str  # a Treatment, or UNKNOWN
    now: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """All findings and advice on one container."""

    container: Container
    findings: list[Finding]
    advice: list[Advice]

    @property
    def will_fail(self) -> bool:
        """Whether a server with these settings does not start, or never becomes ready."""
        return any(map(is_refused, self.findings)) or any(advice.is_problem for advice in self.advice)

    def as_dict(self) -> dict[str, Any]:
        return {
            "file": self.container.file,
            "container": self.container.title,
            "line": self.container.line,
            "image": self.container.image,
            "settings": [asdict(finding) for finding in self.findings],
            "advice": [asdict(advice) for advice in self.advice],
            "works": not self.will_fail,
        }


def examine(container: Container, find_model: FindModel) -> MigrationReport:
    """Judge one container."""
    last = {given.name: given for given in container.env}  # a later one wins
    environ = {given.name: given.value for given in last.values() if given.value is not None}
    command = parse_command(container.argv, environ)
    judged_flags = {name: judge_flag(name, given) for name, given in command.given}
    judged = {name: finding for name, given in last.items() if (finding := judge_variable(given))}
    for findings_by_name, name in ((judged_flags, MODEL), (judged, MODEL.upper())):
        if name in findings_by_name:
            findings_by_name[name] = judge_family(findings_by_name[name], find_model)
    findings = [*judged_flags.values(), *judged.values()]
    flags = {name: value for name, value in command.flags.items() if not is_refused(judged_flags.get(name))}
    environ = {name: value for name, value in environ.items() if not is_refused(judged.get(name))}
    problems = list(command.problems)
    loaded = None
    try:
        loaded = merge_options(flags, environ)
        problems += find_conflicts(loaded.config)
        find_cache_dir(environ)
    except UsageError as error:
        problems.append(str(error))
    if loaded and not command.is_unread and lacks_model(container, command, loaded):
        problems.append(failures.NO_MODEL.format())
    advice = [Advice("start", problem, is_problem=True) for problem in problems]
    advice += advise_on_secrets([given for given in last.values() if given.name not in judged])
    if loaded and command.subcommand in ("", "serve"):
        advice += [] if container.is_partial or command.is_unread else advise_on_defaults(container, command)
        advice += advise(container, command, loaded.config, environ)
    return MigrationReport(container, findings, advice)


def is_refused(finding: Finding | None) -> bool:
    return finding is not None and finding.verdict == Treatment.REFUSED


def lacks_model(container: Container, command: Command, loaded: LoadedConfig) -> bool:
    """Whether no model is given, here or in a place that cannot be read."""
    known = loaded.config.model_name or loaded.config.rehearse
    elsewhere = container.is_partial or (container.around and container.around.missing) or command.subcommand
    named = {given.name for given in container.env} | {name for name, _ in command.given}
    return not (known or elsewhere or named & {MODEL.upper(), MODEL})


def advise_on_defaults(container: Container, command: Command) -> Iterator[Advice]:
    """Advise on settings that are not set and had a different default in the original."""
    variables = {given.name for given in container.env}
    flags = {f"--{name.replace('_', '-')}" for name, _ in command.given}
    flags |= {setting.note for setting in SETTINGS if setting.name in variables or setting.flag in flags}
    for setting in SETTINGS:
        if setting.unset and setting.name not in variables and setting.flag not in flags:
            yield Advice("defaults", f"{setting.name} is not set: {setting.unset}")


def judge_flag(name: str, given: Given) -> Finding:
    option = next((option for option in options() if option.name == name), None)
    return judge(given, option, BY_NAME.get(option.env) if option else None)


def judge_variable(given: Given) -> Finding | None:
    """``None`` for another program's variable."""
    known = OPTIONS_BY_ENV | {option.opt.also_env: option for option in options() if option.opt.also_env}
    option, setting = known.get(given.name), BY_NAME.get(given.name)
    if option or setting:
        return judge(given, option, setting)
    close = difflib.get_close_matches(given.name, [*known, *BY_NAME], n=1, cutoff=CLOSE)
    if not close:
        return None
    return Finding(given.name, show(given), given.line, UNKNOWN, "Not a setting; ignored.", f"Did you mean {close[0]}?")


def judge(given: Given, option: Option | None, setting: Setting | None) -> Finding:
    verdict = setting.treatment if setting else Treatment.SAME
    now = setting.now if setting else option.opt.help if option else "As before."
    if given.value is not None and not given.value.strip():
        verdict, now = Treatment.SAME, "Blank counts as not set."
    elif given.value is not None and option:
        try:
            parse_value(option, given.value, given.name)
        except UsageError as error:
            verdict, now = Treatment.REFUSED, str(error)
    if verdict is Treatment.NOT_YET and setting and given.value is not None and setting.is_quiet(given.value):
        verdict, now = Treatment.SAME, "Always the case."
    return Finding(given.name, show(given), given.line, verdict, now, TODO.get(verdict, ""))


def judge_family(finding: Finding, find_model: FindModel) -> Finding:
    """The finding on a model's name, with what is known about its family."""
    is_known = finding.verdict == Treatment.SAME and finding.value.strip() and not finding.value.startswith(("(", "$"))
    why_not = explain_unserved(finding.value, find_model) if is_known else ""
    if not why_not:
        return finding
    todo = f"Keep the original for it, or choose another model; `tgis plan {finding.value}` reads its config.json."
    return replace(finding, verdict=Treatment.REFUSED, now=why_not, todo=todo)


def show(given: Given) -> str:
    return given.value if given.value is not None else f"({given.source})"


def examine_all(containers: list[Container], find_model: FindModel = lambda _: None) -> Iterator[MigrationReport]:
    """Reports on the containers that look like TGIS.

    Args:
        find_model: by default no model is on this machine.
    """
    return (examine(container, find_model) for container in containers if container.is_ours)
