"""YAML as written: every scalar stays a string, with its line."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from tgis_cli.migrate.containers import LocatedText
from tgis_server.errors import UsageError


def load_documents(text: str, file: str, line: int = 0) -> list[Any]:
    """All non-empty documents of a file: mappings, lists and texts, without cycles.

    Args:
        line: the line of the file after which the text begins.

    Raises:
        UsageError: the text is not valid YAML; the message names the line.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # no type information is shipped
        yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile(r"^<<$"))]}  # noqa: RUF012  as in the base
        yaml_constructors: ClassVar[dict[str, Any]] = {}

    def construct(loader: Any, _tag: str, node: Any) -> Any:
        # Tags such as !!int and !reset do not matter to settings. Deep construction refuses an alias inside its anchor.
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return LocatedText(node.value, line + node.start_mark.line + 1)

    Loader.add_multi_constructor("", construct)
    try:
        return [document for document in yaml.load_all(text, Loader) if document]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {line + mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = " It looks like a template: use the output of `helm template`." if "{{" in text else ""
        raise UsageError(f"{file}{where} is not valid YAML: {reason}.{hint}") from error
