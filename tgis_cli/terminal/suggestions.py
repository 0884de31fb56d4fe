"""What the user may have meant by a command, option or value that does not exist, in one wording for all commands.

Suggestions are close words (see ``close_words``), or the names that other programs' commands and options have here.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tgis_server.words.close_words import find_close, or_list, squeeze

# What other programs call a command. Of several, the first that exists is suggested.
OTHER_COMMANDS = {
    **dict.fromkeys(("serve", "start", "up", "server", "launcher"), ("launch", "load")),
    "try": ("run", "launch"),
    "demo": ("run", "launch", "load --launch demo"),
    **dict.fromkeys(("throughput", "latency"), ("engine",)),
    **dict.fromkeys(("chat", "ask", "prompt", "complete", "query", "infer"), ("generate",)),
    **dict.fromkeys(("pull", "get", "fetch"), ("download-weights",)),
    **dict.fromkeys(("ls", "list", "cache"), ("models",)),
    **dict.fromkeys(("rm", "remove", "delete", "prune"), ("models rm", "rm")),
    **dict.fromkeys(("status", "ping", "probe", "healthcheck"), ("health",)),
    **dict.fromkeys(("top", "servers", "instances"), ("ps",)),
    **dict.fromkeys(("kill", "down", "quit", "shutdown"), ("stop",)),
    **dict.fromkeys(("check", "diagnose", "verify"), ("doctor",)),
    **dict.fromkeys(("fit", "estimate", "memory"), ("plan",)),
    **dict.fromkeys(("encode", "tokens", "tokenizer"), ("tokenize",)),
    **dict.fromkeys(("pack", "export", "save"), ("bundle",)),
    **dict.fromkeys(("unpack", "import", "load"), ("unbundle",)),
    **dict.fromkeys(("settings", "options", "env"), ("config show", "show")),
    **dict.fromkeys(("convert", "convert-weights"), ("convert-to-safetensors",)),
    **dict.fromkeys(("completion", "completions", "autocomplete"), ("--install-completion",)),
}

# What other programs, or other commands here, call an option. Of several, the first that the command has is
# suggested. A name without dashes is an argument. Spelling does not matter.
OTHER_OPTIONS = {
    "port": ("--url",),
    "grpcport": ("--url",),
    "host": ("--url",),
    **dict.fromkeys(("hostname", "bind", "listen", "ip"), ("--host", "--url")),
    **dict.fromkeys(
        ("address", "addr", "server", "serverurl", "endpoint", "baseurl", "uri", "target"), ("--url", "--server-url")
    ),
    "url": ("--server-url",),
    **dict.fromkeys(("httpport", "restport", "metricsport", "healthport"), ("--port", "--url")),
    **dict.fromkeys(("model", "modelid", "modelpath", "modelname", "m"), ("MODEL",)),
    **dict.fromkeys(
        ("maxtokens", "numpredict", "npredict", "maxoutputtokens", "maxcompletiontokens"), ("--max-new-tokens",)
    ),
    **dict.fromkeys(
        ("maxmodellen", "maxtotaltokens", "contextlength", "contextsize", "ctxsize", "numctx", "maxseqlen"),
        ("--max-sequence-length",),
    ),
    **dict.fromkeys(
        ("tensorparallelsize", "tensorparallel", "tp", "tpsize", "ngpus", "gpus", "shards"), ("--gpu", "--num-shard")
    ),
    **dict.fromkeys(("maxnumseqs", "batchsize", "maxbatch"), ("--max-batch-size",)),
    **dict.fromkeys(("maxnumbatchedtokens", "maxbatchprefilltokens"), ("--max-batch-tokens",)),
    "gpumemoryutilization": ("--cuda-process-memory-fraction",),
    **dict.fromkeys(("enableprefixcaching", "prefixcaching"), ("--prefix-cache",)),
    **dict.fromkeys(("cacert", "cafile", "cacertificate", "cabundle", "tlsca"), ("--ca", "--tls-client-ca-cert-path")),
    **dict.fromkeys(("tlscert", "certificate", "clientcert", "certfile", "sslcertfile"), ("--cert", "--tls-cert-path")),
    **dict.fromkeys(("tlskey", "keyfile", "clientkey", "privatekey", "sslkeyfile"), ("--key", "--tls-key-path")),
    **dict.fromkeys(("stopsequence", "stopsequences", "stoptoken", "stopword"), ("--stop",)),
    **dict.fromkeys(("repeatpenalty", "frequencypenalty", "presencepenalty"), ("--repetition-penalty",)),
    **dict.fromkeys(("format", "outputformat", "asjson"), ("--json",)),
    **dict.fromkeys(("logformat", "jsonlogs"), ("--json-output",)),
    **dict.fromkeys(("force", "f", "assumeyes", "noconfirm"), ("--yes", "--now")),
    **dict.fromkeys(("branch", "tag", "commit", "ref"), ("--revision",)),
    **dict.fromkeys(("hftoken", "authtoken", "apikey"), ("--token",)),
    **dict.fromkeys(("outputdir", "output", "o", "dest", "destination", "outdir"), ("--output-path", "--to")),
    "log": ("--log-file",),
    "quantization": ("--quantize",),
    "numprompts": ("--requests",),
    "requestrate": ("--rate",),
    **dict.fromkeys(("inputlen", "randominputlen"), ("--input-tokens",)),
    **dict.fromkeys(("outputlen", "randomoutputlen"), ("--output-tokens",)),
    **dict.fromkeys(("maxconcurrency", "c"), ("--concurrency",)),
    "num": ("-n",),
    "numanswers": ("-n",),
}

# Options that clients of other programs need
SUPERFLUOUS = {
    "model": "leave it out: a server has only one model.",
    "stream": "leave it out: answers are shown as they are generated.",
}

LAUNCH_LINES = ("--launch", "--a")  # options whose value is a line of options of `tgis launch`

MOST_LISTED = 6  # commands in a sentence
ROOT_OPTIONS = ("--debug", "--version", "--install-completion", "--show-completion")  # of `tgis` itself

# A text that looks like an option needs the mark that ends the options.
END_OF_OPTIONS = "if it is meant as a text, write `--` before it."


def explain_no_command(word: str, group: str, commands: Sequence[str]) -> str:
    """
    Args:
        group: what was typed before, such as ``tgis``.
        commands: the group's.
    """
    other = OTHER_COMMANDS.get(word.lower(), ())
    if any(f"tgis {name}" == group for name in other):
        meant = [group]
    else:
        names = [name for name in other if name.split()[0] in commands or name in ROOT_OPTIONS][:1]
        names = names or find_close(word, commands)
        meant = [f"{group} {name}" for name in names]
    if meant:
        return f"No such command: {word}; did you mean {or_list([f'`{line}`' for line in meant])}?"
    if len(commands) > MOST_LISTED:
        return f"No such command: {word}; `{group} --help` lists the commands."
    return f"No such command: {word}; {'the only one is' if len(commands) == 1 else 'there are'} {', '.join(commands)}."


def explain_no_option(word: str, params: Mapping[str, Any], command: str, commands: Sequence[str] = ()) -> str:
    """
    Args:
        word: what was typed, such as ``--rehears``.
        commands: a group's.
        params: the options and arguments of the command by each of their names, as Typer knows them.
        command: such as ``tgis launch``.
    """
    if word.lstrip("-") in commands:
        return f"No such option: {word}; did you mean `{command} {word.lstrip('-')}`?"
    hidden = {name for name, param in params.items() if getattr(param, "hidden", False)}
    values = {name: value_of(param) for name, param in params.items()}
    where = None
    found = find_option(word, values, hidden, command)
    if found is None:
        where = find_command_with(word, command)
        found = find_close(word, [name for name in values if name[:2] == "--" and name not in hidden])
    return write_no_option(word, found, where, command)


def find_option(word: str, values: Mapping[str, str], hidden: set[str], command: str) -> list[str] | str | None:
    """The option in its correct spelling, or what to give instead; ``None`` if neither is certain."""
    if word in ROOT_OPTIONS and command.startswith("tgis "):
        return f"it goes before the command: `tgis {word} ...`."
    same = [name for name in values if name[:2] == "--" and squeeze(name) == squeeze(word)]
    if same:
        return same
    if line := next((name for name in LAUNCH_LINES if name in values), None):
        if squeeze(word) == "model":
            return f"a running server has its model; {line} MODEL starts a server."
        if find_server_option(word):
            return f'it is for the server: write it in the line of {line}, as in {line} "MODEL {word} ...".'
    if "--url" in values and squeeze(word) in SUPERFLUOUS:
        return SUPERFLUOUS[squeeze(word)]
    for other in OTHER_OPTIONS.get(squeeze(word), ()):
        if other in values:
            return f"use {other} {values[other]}".rstrip() + " instead."
        if other.isupper() and (other.lower() in values or other in values.values()):
            return f"give the {other.lower()} without an option: `{command} {other}`."
    return None


def write_no_option(word: str, found: list[str] | str | None, where: str | None, command: str) -> str:
    start = f"No such option: {shlex.quote(word)}"
    if isinstance(found, str):
        return f"{start}; {found}"
    if where and command == "tgis":
        return f"{start}; it goes after the command: `tgis COMMAND {word}`."
    if where and command == "tgis run" and (ways := name_ways_in_run(word)):
        return f"{start}; {ways}."
    if where:
        return f"{start}; it is an option of `{where}`."
    if found:
        return f"{start}; did you mean {or_list(found)}?"
    if " " in word or word[1:2].isdigit():
        return f"{start}; {END_OF_OPTIONS}"
    return f"{start}; `{command} --help` lists the options."


def name_ways_in_run(flag: str) -> str:
    """How an option of `tgis launch` is set for `tgis run`; empty if there is no such option, or its value is fixed."""
    option = find_server_option(flag)
    return f"set {option.env} in the environment, or {option.name} in a file for --config" if option else ""


def find_server_option(flag: str) -> Any:
    """An option of `tgis launch` that servers of one command can have; ``None`` if there is no such option."""
    from tgis_cli.terminal.fixed_in_run import FIXED_IN_RUN
    from tgis_server.options import options

    return next((each for each in options() if each.flag == flag and each.name not in FIXED_IN_RUN), None)


def explain_too_many(words: str, usage: str) -> str:
    """
    Args:
        usage: such as ``tgis tokenize [TEXT]``.
    """
    hint = "; a text with blanks needs quotes" if "TEXT" in usage and " " in words else ""
    return f"Too many arguments: {words} is not expected in `{usage}`{hint}."


def value_of(param: Any) -> str:
    if getattr(param, "is_flag", False):
        return ""
    return str(param.metavar or "VALUE")


def find_command_with(word: str, command: str) -> str | None:
    """Another command that has exactly this option; for a group, one of its own comes first."""
    from tgis_cli.terminal.command_table import COMMANDS, load_command

    if word[:2] != "--":
        return None
    for name in sorted(COMMANDS, key=lambda name: f"tgis {name}" != command):  # this group's own commands first
        loaded = load_command(name)
        for title, each in (
            (name, loaded),
            *((f"{name} {sub}", got) for sub, got in getattr(loaded, "commands", {}).items()),
        ):
            if f"tgis {title}" != command and any(
                word in (*param.opts, *param.secondary_opts) for param in each.params
            ):
                return f"tgis {title}"
    return None


def explain_no_choice(label: str, value: str, choices: Iterable[str]) -> str:
    """``--probe is 'redy', but must be one of ready, live, startup. Did you mean ready?``."""
    choices = list(choices)
    close = find_close(value, choices)
    hint = f" Did you mean {or_list(close)}?" if close else ""
    return f"{label} is {value!r}, but must be one of {', '.join(choices)}.{hint}"
