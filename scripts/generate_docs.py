"""Write the pages of docs/ that are made from the code: options and metrics. A test compares them."""

from __future__ import annotations

from pathlib import Path

from tgis_server.config import GROUPS, Option, describe_accepted, options
from tgis_server.metrics import SPECS

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTICE = "<!-- Made from the code by `make docs`. -->\n"


def options_page() -> str:
    """Every option of ``tgis launch`` with its environment variable, what it takes, and its default."""
    lines = [
        NOTICE,
        "# Options of `tgis launch`\n",
        "A flag wins over the environment, the environment over `--config FILE` (TOML, option names as keys),",
        "the file over the default. Blank environment variables count as not set. A switch `--x` has its",
        "opposite `--no-x`; in the environment `n`, `no`, `f`, `false`, `off` and `0` are false and anything",
        "else is true. `tgis config show` prints every value and its origin.",
    ]
    for group in GROUPS:
        lines += [
            "",
            f"## {group}",
            "",
            "| option | environment | takes | default | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [option_row(option) for option in options() if option.opt.group == group]
    return "\n".join(lines) + "\n"


def option_row(option: Option) -> str:
    flag = f"`{option.flag}`" + (f", `-{option.opt.short}`" if option.opt.short else "")
    default = option.opt.unset or "not set" if option.default is None else f"`{str(option.default).lower()}`"
    return f"| {flag} | `{option.env}` | {describe_accepted(option)} | {default} | {option.opt.help} |"


def metrics_page() -> str:
    """Every metric with kind, unit and labels."""
    lines = [
        NOTICE,
        "# Metrics\n",
        "`GET /metrics` on the HTTP port. Counters appear under their bare name and with `_total`.\n",
        "| metric | kind | unit | labels | meaning |",
        "|---|---|---|---|---|",
    ]
    for spec in SPECS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        lines.append(f"| `{spec.name}` | {spec.kind} | {spec.unit} | {labels} | {spec.help} |")
    return "\n".join(lines) + "\n"


PAGES = {"options.md": options_page, "metrics.md": metrics_page}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
        print(DOCS / name)


if __name__ == "__main__":
    main()
