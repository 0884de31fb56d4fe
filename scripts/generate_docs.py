"""Write what is made from the code in docs/: whole pages, and parts of migration.md, commands.md and benchmarking.md.

A test checks that they match.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console

from tgis_cli.app import app
from tgis_cli.commands.bench import EXIT_CODES
from tgis_cli.decide.legacy_settings import SETTINGS
from tgis_cli.migrate import examine_all, read_containers, read_settings_file
from tgis_cli.migrate.text import print_reports
from tgis_cli.terminal.option_help import describe_command
from tgis_server.errors import GroupFailed, ModelError, NotEnoughDevices, PeerLost, UsageError
from tgis_server.failures import CATALOGUE
from tgis_server.frontend.metrics import SPECS
from tgis_server.options import GROUPS, Option, describe_accepted, options

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTICE = "<!-- Made from the code by `make docs`. -->\n"
BUCKETS = {
    "names that end with `duration`": "35, from 0.15 ms to 146 s, each 1.5 times the previous one",
    "`tgi_request_input_length`, `tgi_request_total_tokens`": "64 equal steps up to `max_sequence_length`",
    "`tgi_request_max_new_tokens`, `tgi_request_generated_tokens`": "64 equal steps up to `max_new_tokens`",
    "`tgi_batch_inference_batch_size`": "1, 2, … `max_batch_size`",
    "`tgi_tokenize_request_tokens`": "64, 128, … 524,288",
    "`tgi_request_raw_input_length`, `tgi_batch_next_tokens`": "1, 2, 4, … 524,288",
}
# Values of the label ``err``, and what each counts.
FAILURES = {
    "conc_limit": "Calls with more inputs than free permits.",
    "validation": "Calls that ended with INVALID_ARGUMENT, except streams without an input (`missing request`).",
    "generate": "Calls that failed later, whatever the number of their inputs.",
    "unknown": "Calls refused for another reason: the server is starting, draining or shutting down.",
    "cancelled": "Inputs that waited or ran when their client cancelled, disconnected or ran out of time.",
    "timeout": "Inputs whose `time_limit_millis` passed before their first token; "
    "they also count as successes (`TIME_LIMIT`).",
}
# Metrics of the original that do not exist here, and the reasons.
ABSENT = {
    "`tgi_queue_jump`": "A request is overtaken at most 16 times, and that is not counted.",
    "`tgi_granular_batch_addition`": "Free memory is counted exactly, in KV blocks; no coarse bound needs refining.",
    "`tgi_prefill_weight_limit_exceeded`": "A long prompt is cut into chunks (`--max-batch-tokens`), not held back.",
    "`tgi_prefill_padding_limit_exceeded`": "Batches have no padding.",
    '`tgi_request_failure{err="queue_full"}`': "Permits are the only limit; the queue behind them cannot be full.",
    '`tgi_batch_inference_failure{reason="error"}`': "A step that fails with an error ends the server.",
    "`tgi_prompt_load_duration`, `tgi_prompt_load_failure`": "There are no tuned prompts.",
}
FAILURE_TITLES = {
    UsageError: "Exit code 2: options, addresses and directories",
    ModelError: "Exit code 3: the model",
    NotEnoughDevices: "Exit code 4: devices and memory",
    GroupFailed: "Exit code 5: a process of the group",
    PeerLost: "Exit code 5: consequences, reported only if no cause is known",
}


def options_page() -> str:
    """Every option of ``tgis launch`` with its environment variable, accepted values, and default."""
    lines = [
        NOTICE,
        "# Options of `tgis launch`\n",
        "A value comes from the first of these that has one: the flag, the environment, `--config FILE` (TOML, with",
        "option names as keys), and the default. Blank environment variables are treated as unset. The opposite of a",
        "switch `--x` is `--no-x`; in the environment, `n`, `no`, `f`, `false`, `off` and `0` are false and anything",
        "else is true. `tgis config show` prints every value and its origin; a wrong value in the file is reported",
        "with its line. `tgis config init [FILE]` writes a file that explains every option, all commented out except",
        "those given on its command line.",
    ]
    for group in GROUPS:
        lines += [
            "",
            f"## {group}",
            "",
            "| option | environment | accepts | default | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [option_row(option) for option in options() if option.opt.group == group]
    return "\n".join(lines) + "\n"


def option_row(option: Option) -> str:
    flag = f"`{option.flag}`" + (f", `-{option.opt.short}`" if option.opt.short else "")
    default = option.opt.unset or "not set" if option.default is None else f"`{str(option.default).lower()}`"
    return f"| {flag} | `{option.env}` | {describe_accepted(option)} | {default} | {option.opt.help} |"


def metrics_page() -> str:
    """Every metric with kind, unit, labels and meaning."""
    lines = [
        NOTICE,
        "# Metrics\n",
        "`GET /metrics` on the HTTP port works in every phase of the server's life. Counters appear under their bare",
        "name, untyped, and with `_total`. Series without labels exist from the start, so `rate` and `increase`",
        "include their first event; a series with labels appears with its first event.\n",
        "| metric | kind | unit | labels | meaning |",
        "|---|---|---|---|---|",
    ]
    for spec in SPECS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        lines.append(f"| `{spec.name}` | {spec.kind} | {spec.unit} | {labels} | {spec.help} |")
    lines += [
        "",
        "The engine's values are those of its last step, and a step is counted when it ends. A step that both prefills",
        "and decodes is counted under both methods, each with its own sequences; the `tgi_step_*` metrics count it",
        "once.",
        "",
        "## Failures",
        "",
        "| `err` | what it counts |",
        "|---|---|",
        *(f"| `{err}` | {meaning} |" for err, meaning in FAILURES.items()),
        "",
        "Cancelled inputs have no other counter. Calls that end because the engine died count as `generate`.",
        "",
        "## Buckets",
        "",
        "| metric | upper bounds |",
        "|---|---|",
        *(f"| {names} | {bounds} |" for names, bounds in BUCKETS.items()),
        "",
        "## Differences from the original",
        "",
        "All of the original's metrics keep their names, labels, buckets and times of counting, except these:",
        "",
        "- `tgi_request_raw_input_length` and `tgi_batch_next_tokens` are histograms instead of summaries.",
        "- `tgi_batch_max_remaining_tokens` is a maximum, as its name says, not a sum.",
        '- `tgi_batch_inference_*{method="prefill"}` count a prompt in every step that computes part of it.',
        '- `tgi_request_failure{err="unknown"}` also counts unary calls. With `err="cancelled"`, inputs of failed',
        "  calls are not counted.",
        "",
        "These never appear:",
        "",
        "| metric | why |",
        "|---|---|",
        *(f"| {names} | {reason} |" for names, reason in ABSENT.items()),
    ]
    return "\n".join(lines) + "\n"


def failures_page() -> str:
    """Every failure that ends startup or a server, by exit code."""
    lines = [
        NOTICE,
        "# Failures\n",
        "If startup or a running server fails, one sentence says why: it is the launcher's last line, the beginning of",
        "the termination log and, until the server exits, the answer from `/health`. Words in capitals stand for",
        "values; the name of the process or command may come first. The run directory is kept after the failure of a",
        "process; `errors/NAME.log` in it has the traceback or the last lines of each failed process.",
        "",
        "Several processes often fail together. The cause is the earliest error that is not a consequence of another.",
    ]
    assert FAILURE_TITLES.keys() >= {failure.kind for failure in CATALOGUE}
    for kind, title in FAILURE_TITLES.items():
        lines += ["", f"## {title}", "", "| failure | recognised by | sentence |", "|---|---|---|"]
        rows = (failure for failure in CATALOGUE if failure.kind is kind)
        lines += [f"| {row.name} | {row.evidence} | {show_template(row.sentence)} |" for row in rows]
    return "\n".join(lines) + "\n"


def show_template(sentence: str) -> str:
    """Replace placeholders with names in capitals."""
    return re.sub(r"\{(\w+?)(?:_bytes|_s)?(?:[!:][^}]*)?\}", lambda match: match[1].upper(), sentence)


def migration_page() -> str:
    return fill_page("migration.md", {"run": migration_run, "settings": settings_table})


def commands_page() -> str:
    return fill_page("commands.md", {"help": list_of_commands})


def benchmarking_page() -> str:
    return fill_page("benchmarking.md", {"exit codes": exit_codes_table})


def exit_codes_table() -> str:
    """Every code with which `tgis bench` can end."""
    rows = (f"| {code:d} | {meaning} |" for code, meaning in sorted(EXIT_CODES.items()))
    return "\n".join(["| exit code | |", "|--:|---|", *rows, ""])


def fill_page(name: str, texts: Mapping[str, Callable[[], str]]) -> str:
    """A hand-written page, with fresh text between its marks."""
    page = (DOCS / name).read_text()
    for mark, make in texts.items():
        begin, end = f"<!-- {mark}: made from the code by `make docs` -->\n", f"<!-- end of {mark} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{make()}{end}{rest.partition(end)[2]}"
    return page


def list_of_commands() -> str:
    """The output of `tgis --help` in a pipe."""
    command = typer.main.get_command(app)
    page = describe_command(command, command.make_context("tgis", [], resilient_parsing=True))
    return f"```\n$ tgis --help\n{page.render(80, is_styled=False)}```\n"


def migration_run() -> str:
    """The output of `tgis migrate` for the original's manifest, on a terminal."""
    manifest = DOCS.parent / "tests/unit/migrate/manifests/original.yaml"
    output = io.StringIO()
    settings = replace(read_settings_file(str(manifest)), name="original.yaml")
    reports = list(examine_all(read_containers([settings])))
    print_reports(reports, Console(file=output, width=96, force_terminal=True, color_system=None))
    lines = [line.rstrip() for line in output.getvalue().rstrip().splitlines()]
    return "\n".join(["```", "$ tgis migrate original.yaml", *lines, "```", ""])


def settings_table() -> str:
    """Every setting of the original with its verdict."""
    lines = ["| setting | flag | verdict | what it does now |", "|---|---|---|---|"]
    for setting in SETTINGS:
        unset = f" Its default is {setting.unset}" if setting.unset else ""
        flag = f"`{setting.flag}`" if setting.flag else ""
        lines.append(f"| `{setting.name}` | {flag} | {setting.treatment} | {setting.now}{unset} |")
    return "\n".join([*lines, ""])


def modules_page() -> str:
    """Every module of both packages with the first sentence of its docstring, by folder."""
    lines = [
        NOTICE,
        "# Modules\n",
        "One line per file, for a search by word; [structure.md](structure.md) has the rooms and what they may import.",
    ]
    root, folder = DOCS.parent, None
    for file in sorted(find_modules(root), key=lambda file: (file.parent, file.name)):
        if file.parent != folder:
            folder = file.parent
            lines += ["", f"## `{folder.relative_to(root)}`", "", "| file | purpose |", "|---|---|"]
        lines.append(f"| `{file.name}` | {first_sentence(file)} |")
    return "\n".join(lines) + "\n"


def find_modules(root: Path) -> Iterator[Path]:
    """All files with code, except generated ones."""
    for package in ("tgis_cli", "server/tgis_server"):
        yield from (file for file in (root / package).rglob("*.py") if "_pb2" not in file.name)


def first_sentence(file: Path) -> str:
    doc = inspect.cleandoc(ast.get_docstring(ast.parse(file.read_text())) or "")
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z`])|\n\n|::?\n", doc)[0]
    return " ".join(sentence.replace("``", "`").replace("|", r"\|").split())


PAGES = {
    "modules.md": modules_page,
    "options.md": options_page,
    "metrics.md": metrics_page,
    "failures.md": failures_page,
    "migration.md": migration_page,
    "commands.md": commands_page,
    "benchmarking.md": benchmarking_page,
}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
        print(DOCS / name)


if __name__ == "__main__":
    main()
