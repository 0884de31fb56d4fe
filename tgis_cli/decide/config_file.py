"""The commented ``tgis.toml`` that ``tgis config init`` writes, made from the table of options.

As written it changes no value: options are commented out, except those whose values are given.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tgis_cli.terminal.sentences import print_sentence
from tgis_server.errors import UsageError
from tgis_server.options import GROUPS, LoadedConfig, Option, describe_accepted, options
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.sizes import write_bytes_for_option
from tgis_server.words.url_credentials import split_credentials

WIDTH = 80
MOST_USED = (
    "model_name",
    "num_shard",
    "dtype",
    "max_sequence_length",
    "max_new_tokens",
    "max_concurrent_requests",
    "host",
    "grpc_port",
    "port",
    "tls_cert_path",
    "tls_key_path",
    "tls_client_ca_cert_path",
    "http_tls",
    "log_file",
    "json_output",
)
# What the file shows for options without a default.
EXAMPLES: Mapping[str, Any] = {
    "model_name": "ibm-granite/granite-3.3-2b-instruct",
    "revision": "main",
    "deployment_framework": "tgis_native",
    "dtype": "bfloat16",
    "dtype_str": "bfloat16",
    "quantize": "gptq",
    "num_shard": 2,
    "num_gpus": 2,
    "kv_cache_memory": "2GiB",
    "max_sequence_length": 8192,
    "max_batch_tokens": 2048,
    "tokenization_workers": 4,
    "tls_cert_path": "/etc/tgis/tls/tls.crt",
    "tls_key_path": "/etc/tgis/tls/tls.key",
    "tls_client_ca_cert_path": "/etc/tgis/tls/ca.crt",
    "run_dir": "/var/tmp",  # noqa: S108  text, not a file of ours
    "shard_uds_path": "/run/tgis/shard",
    "log_file": "/var/log/tgis.log",
    "otlp_endpoint": "http://collector:4317",
    "fault": "shard1:exit@step3",
    "max_waiting_tokens": 24,
    "max_prefill_padding": 0.2,
    "master_addr": "localhost",
    "master_port": 29500,
}
HEADER = """\
Options of `tgis launch --config {file}`. Flags and environment variables take precedence.

A line that begins with `#name =` shows the default, or an example where it says so: remove the # to set
the option. `tgis config show --config {file}` checks this file, and shows every value and its origin.
"""


def make_config_text(loaded: LoadedConfig, file: str) -> str:
    """The text of a config file with every option and what it means.

    Args:
        loaded: options that do not have their default's origin are set, the others commented out.
        file: its name, for the header.

    Raises:
        UsageError: a value is a secret, which does not belong into a file.
    """
    given = {option.name for option in options() if loaded.origins[option.name] != "default"}
    blocks = [make_comment(paragraph) for paragraph in HEADER.format(file=escape_controls(file)).split("\n\n")]
    text = "#\n".join(blocks)
    for title, members in split_into_sections():
        text += f"\n\n# ---- {title} ".ljust(WIDTH + 1, "-") + "\n"
        for option in members:
            text += "\n" + make_entry(option, getattr(loaded.config, option.name), is_given=option.name in given)
    return text


def write_config_file(file: str, loaded: LoadedConfig, *, replace: bool) -> None:
    """Write a file of the options, or print it if the name is ``-``.

    Raises:
        UsageError: the file exists and is not to be replaced, or cannot be written.
    """
    if not file:
        raise UsageError("The name of the file is empty: give one, or - for stdout.")
    if file == "-":
        print(make_config_text(loaded, "tgis.toml"), end="")
        return
    text = make_config_text(loaded, file)
    try:
        with Path(file).open("w" if replace else "x", encoding="utf-8") as output:
            output.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists: give another name, or replace it with --force.") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.") from error
    print_sentence(f"{file} is written: edit it, then `tgis launch --config {file}`.", sys.stdout)


def split_into_sections() -> Iterator[tuple[str, Collection[Option]]]:
    """The most used options, then the others by group; those that ``--help`` hides are the last of their group."""
    by_name = {option.name: option for option in options()}
    yield "Most used", [by_name.pop(name) for name in MOST_USED]
    for group in GROUPS:
        members = [option for option in by_name.values() if option.opt.group == group]
        yield group, sorted(members, key=lambda option: option.opt.hidden)


def make_entry(option: Option, value: Any, *, is_given: bool) -> str:
    """The comment of an option, and the line that sets it or would set it."""
    if is_given and option.opt.has_credentials and split_credentials(value)[1]:
        raise UsageError(f"{option.flag} contains credentials: leave it out of the file, and give it in {option.env}.")
    default = ""
    if option.default is None:
        default = f" Default: {option.opt.unset or 'not set'}."
    elif is_given:
        default = f" Default: {to_toml(option, option.default)}."
    facts = f"{describe_accepted(option)}.{default} Environment: {option.env}."
    comment = make_comment(option.opt.help) + make_comment(facts[0].upper() + facts[1:])
    is_example = not is_given and option.default is None
    shown = EXAMPLES[option.name] if is_example else value
    mark, note = "" if is_given else "#", "  # example" if is_example else ""
    return f"{comment}{mark}{option.name.replace('_', '-')} = {to_toml(option, shown)}{note}\n"


def make_comment(text: str) -> str:
    lines = textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def to_toml(option: Option, value: Any) -> str:
    """A value as TOML: sizes with a unit where they are round."""
    if isinstance(value, bool):
        return str(value).lower()
    if option.opt.unit == "bytes" and isinstance(value, int):
        size = write_bytes_for_option(value)
        return size if size.isdecimal() else f'"{size}"'
    if isinstance(value, int | float):
        return repr(value)
    text = str(value) if isinstance(value, Path) else value
    # TOML's basic strings have JSON's escapes, and must not contain the DEL that JSON may.
    return escape_controls(json.dumps(text, ensure_ascii=False))
