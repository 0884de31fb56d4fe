"""docs/structure.md is the map of the tree: every import that it does not allow fails here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "structure.md"
PACKAGES = {"tgis_cli": ROOT / "tgis_cli", "tgis_server": ROOT / "server" / "tgis_server"}
TORCH_ROOMS = ("tgis_server.engines.native", "tgis_server.engines.sampling")


class Table:
    """The rooms of both packages, in the order of the page, as dotted names."""

    def __init__(self) -> None:
        self.rooms: dict[str, str] = {}  # module or package -> the room that it belongs to
        self.allowed: dict[str, set[str]] = {}  # room -> rooms that it may import
        self.callers: dict[str, set[str]] = {}
        self.common: list[str] = []  # rooms that all rooms above them may import


@cache
def read_table() -> Table:
    table = Table()
    rows = list(read_rows())
    for package, row in rows:
        first, *others = to_modules(package, row["room"])
        table.rooms |= dict.fromkeys((first, *others), first)
    for package, row in rows:
        room = to_modules(package, row["room"])[0]
        table.allowed[room] = {
            table.rooms[name]
            for column, of in (("may import", package), ("and of `tgis_server`", "tgis_server"))
            for name in to_modules(of, row.get(column, ""))
        }
        table.callers[room] = {table.rooms[name] for name in to_modules(package, row["called by"])}
        if row["called by"] == "every room above":
            table.common.append(room)
    return table


def read_rows() -> Iterator[tuple[str, dict[str, str]]]:
    package, columns = "", []
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            heading = re.fullmatch(r"## Rooms of `(tgis_\w+)`", line)
            package, columns = heading[1] if heading else "", []
        elif package and line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if columns:
                yield package, dict(zip(columns, cells, strict=True))
            columns = columns or cells


def to_modules(package: str, cell: str) -> list[str]:
    return [f"{package}.{name.replace('/', '.')}" for name in re.findall(r"`([\w/]+)`", cell)]


@cache
def find_modules() -> dict[str, Path]:
    return {
        ".".join((package, *path.relative_to(top).with_suffix("").parts)).removesuffix(".__init__"): path
        for package, top in PACKAGES.items()
        for path in sorted(top.rglob("*.py"))
    }


@cache
def find_room(module: str) -> str:
    """The room of the longest name in the table with which the module's name begins; empty if there is none."""
    while module and module not in read_table().rooms:
        module = module.rpartition(".")[0]
    return read_table().rooms.get(module, "")


@cache
def read_imports(module: str) -> dict[str, bool]:
    """What a module imports anywhere, and whether importing the module already imports it."""
    found: dict[str, bool] = {}
    for node, is_immediate in walk(ast.parse(find_modules()[module].read_text())):
        names = {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            full = {f"{node.module}.{name}" for name in names}
            names = {name if name in find_modules() else str(node.module) for name in full}
        for name in names:
            found[name] = is_immediate or found.get(name, False)
    return found


def walk(node: ast.AST, is_immediate: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, is_immediate
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            is_later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, is_immediate and not is_later and not is_for_types)


@cache
def list_steps() -> dict[tuple[str, str], str]:
    """Each room and each one that it imports, with an import that shows this. The packages themselves do not count."""
    steps: dict[tuple[str, str], str] = {}
    for module in find_modules().keys() - PACKAGES:
        for imported in read_imports(module).keys() & find_modules().keys() - PACKAGES.keys():
            if find_room(module) != find_room(imported):
                steps.setdefault((find_room(module), find_room(imported)), f"{module} imports {imported}")
    return steps


def test_every_module_is_in_a_room():
    parents = {name.rpartition(".")[0] for name in read_table().rooms}
    assert [module for module in find_modules() if module not in parents and not find_room(module)] == []


def test_every_row_is_a_room_that_exists():
    assert [name for name in read_table().rooms if name not in find_modules()] == []


def test_rooms_import_only_what_the_page_allows():
    table = read_table()
    order = list(table.allowed)
    forbidden = sorted(
        text
        for (room, other), text in list_steps().items()
        if other not in table.allowed.get(room, ())
        and not (other in table.common and order.index(room) < order.index(other))
    )
    assert not forbidden, "\n".join(forbidden)


def test_the_page_allows_no_import_that_nothing_makes():
    allowed = {(room, other) for room, others in read_table().allowed.items() for other in others}
    assert sorted(allowed - list_steps().keys()) == []


def test_rooms_stand_above_what_they_import():
    order = list(read_table().allowed)
    upwards = {
        f"{room} -> {other}"
        for room, others in read_table().allowed.items()
        for other in others
        if room.startswith(other.partition(".")[0]) and order.index(other) < order.index(room)
    }
    assert sorted(upwards) == []


def test_callers_on_the_page_may_import_what_they_call():
    allowed = read_table().allowed
    calls = {(caller, room) for room, callers in read_table().callers.items() for caller in callers}
    assert sorted(f"{caller} -> {room}" for caller, room in calls if room not in allowed[caller]) == []


def test_modules_do_not_import_each_other_in_circles():
    waiting = {
        module: {name for name, is_immediate in read_imports(module).items() if is_immediate and name != module}
        for module in find_modules()
    }
    while free := {module for module, others in waiting.items() if not others & waiting.keys()}:
        waiting = {module: others for module, others in waiting.items() if module not in free}
    assert sorted(waiting) == []


def test_the_server_imports_nothing_from_the_command_line():
    server = [module for module in find_modules() if module.startswith("tgis_server")]
    assert [module for module in server if any(name.startswith("tgis_cli") for name in read_imports(module))] == []


def test_nothing_imports_tests_or_scripts():
    files = [path for folder in ("tests", "scripts") for path in (ROOT / folder).rglob("*.py")]
    names = {"tests", "scripts", *(path.stem for path in files)}
    assert [one for one in find_modules() if names & {name.partition(".")[0] for name in read_imports(one)}] == []


def test_only_engines_import_torch_at_the_top_of_a_file():
    users = {
        module
        for module in find_modules()
        for name, is_immediate in read_imports(module).items()
        if is_immediate and name.partition(".")[0] == "torch"
    }
    assert sorted(module for module in users if not module.startswith(TORCH_ROOMS)) == []
