"""Pages made from the code are up to date, and links and paths in all pages lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FOLDERS = (
    "",
    "server",
    "server/tgis_server",
    "server/tgis_server/engines/native",
    "tgis_cli",
)  # where the paths in pages may start
spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "generate_docs.py")
generate_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate_docs)


@cache
def read_anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", generate_docs.PAGES)
def test_generated_pages_are_up_to_date(name):
    assert (ROOT / "docs" / name).read_text() == generate_docs.PAGES[name](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in read_anchors(linked), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_code_exist(page):
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|proto))`", page.read_text()):
        assert any((ROOT / folder / path).exists() for folder in FOLDERS), path


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    assert [page.name for page in PAGES[1:] if page.name != "index.md" and f"({page.name})" not in index] == []


def test_code_names_only_pages_that_exist():
    for folder in ("tgis_cli", "server", "tests", "scripts", "proto"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix in (".py", ".proto", ".toml"):
                for name in re.findall(r"\bdocs/\w+\.md", file.read_text()):
                    assert (ROOT / name).exists(), f"{file}: {name}"


def test_the_page_for_clients_names_every_field_of_a_request():
    names = set(re.findall(r"\b\w+\b", "".join(re.findall(r"`[^`\n]+`", (ROOT / "docs" / "client.md").read_text()))))

    assert {name for name in read_request_fields() if name not in names} == set()


def read_request_fields() -> set[str]:
    """The names of all fields in the requests of the API, and in the messages that these contain."""
    from tgis_server.wire import generation_pb2 as pb

    pending = [method.input_type for method in pb.DESCRIPTOR.services_by_name["GenerationService"].methods]
    found: set[str] = set()
    while pending:
        for field in pending.pop().fields:
            found.add(field.name)
            pending += [field.message_type] if field.message_type else []
    return found
