"""YAML read strictly: small files, plain values, no duplicate keys, no anchors and no tags."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources.abc import Traversable
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 12
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(file: Traversable, label: str) -> dict[str, Any]:
    """The mapping in a YAML file, as plain dicts, lists and scalars.

    Raises ValueError, one line that begins with ``label``: missing, over 1 MB, not UTF-8, not YAML, duplicate key,
    anchor, tag, nested too deep, or no mapping at the top.
    """
    try:
        return _parse(_text(file))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{label}: line {line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{label}: {' '.join(str(error).split())}") from None


def value(text: str, label: str) -> Any:
    """One value in YAML (a word, a number, a list, a mapping), under the same rules as a file.

    Raises ValueError, one line that begins with ``label``.
    """
    try:
        _refuse_tricks(text)
        loader = LOADER(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _plain(loader, node)
        finally:
            loader.dispose()
    except yaml.YAMLError:
        raise ValueError(f"{label}: {' '.join(text.split())[:60]!r}: not a YAML value") from None
    except ValueError as error:
        reason = " ".join(str(error).split()).removeprefix("line 1: ")
        raise ValueError(f"{label}: {' '.join(text.split())[:60]!r}: {reason}") from None


def _text(file: Traversable) -> str:
    if not file.is_file():
        raise ValueError("no such file")
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes, which no profile is")
    return data.decode("utf-8")


def _parse(text: str) -> dict[str, Any]:
    _refuse_tricks(text)
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("the file must be a mapping of keys to values")
        return _mapping(loader, node)
    finally:
        loader.dispose()


def _refuse_tricks(text: str) -> None:
    """Scan the events first: composing is recursive, and aliases can blow a small file up without bound."""
    depth = 0
    events: Iterable[Any] = yaml.parse(text, Loader=LOADER)
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"line {event.start_mark.line + 1}: anchors and aliases are not allowed")
        if getattr(event, "tag", None):
            raise ValueError(f"line {event.start_mark.line + 1}: tags are not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"line {event.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels")


def _plain(loader: Any, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item) for item in node.value]
    return loader.construct_object(node)


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"line {line}: a key must be a plain word")
        if key_node.value in result:
            raise ValueError(f"line {line}: key {key_node.value!r} is given twice")
        result[key_node.value] = _plain(loader, value_node)
    return result
