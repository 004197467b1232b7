"""YAML of a person read as plain data: bounded before anything is built of it, every refusal with its line.

Two things that a file can do even to YAML's safe loader: nest so deep that Python's stack ends, and name one list many
times over (``*alias``), so that whoever walks through it walks for years. Both are counted while the text is only split
into events, and so is what looks like an expression or a variable: a config has neither.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml import events

from ssl_med.errors import UserError

BYTES, DEPTH, VALUES = 1_000_000, 40, 20_000
"""The largest file, the deepest nesting, and the most values with each alias written out."""


class _Loader(yaml.SafeLoader):
    """Plain data; a value that its tag does not allow (``2024-13-45`` looks like a date) is told with its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As in the safe loader, with one kind of error."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError) as error:
            tag = node.tag.rpartition(":")[-1]
            raise yaml.constructor.ConstructorError(
                problem=f"{str(node.value)[:40]!r} is no {tag}", problem_mark=node.start_mark
            ) from error


def read_yaml(path: Path) -> tuple[Any, dict[str, int]]:
    """The content of a file, and the line of each value by its dotted name.

    Raises:
        UserError: no YAML, objects, expressions, variables, or more than any config needs; with the line.
    """
    size = path.stat().st_size
    if size > BYTES:
        raise UserError(f"{path} has {size:,} bytes, a config at most {BYTES:,}")
    try:
        text = path.read_text("utf-8")
        _check(text, path)
        node = yaml.compose(text, _Loader)
        lines = {".".join(place): mark for place, mark in _lines(node, ())} if node else {}
        return yaml.load(text, _Loader), lines
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: it is no text in UTF-8") from error


@dataclass
class _Count:
    """How much a text holds, an event at a time.

    Attributes:
        open: for each collection that has not ended, its anchor and the values before it.
        values: so far, with each alias written out.
        anchors: name -> values of what it names.
    """

    open: list[tuple[str | None, int]] = field(default_factory=list)
    values: int = 0
    anchors: dict[str, int] = field(default_factory=dict)

    def take(self, event: Any) -> str:
        """Count one event; says what is wrong with it, nothing if nothing is."""
        anchor = getattr(event, "anchor", None)
        if isinstance(event, events.AliasEvent):
            if anchor not in self.anchors:
                return f"*{anchor} names what has no such anchor before it, or what it stands in"
            self.values += self.anchors[anchor]
        elif isinstance(event, events.CollectionStartEvent):
            self.open.append((anchor, self.values))
            self.values += 1
        elif isinstance(event, events.CollectionEndEvent):
            name, before = self.open.pop()
            if name:
                self.anchors[name] = self.values - before
        elif isinstance(event, events.ScalarEvent):
            self.values += 1
            if anchor:
                self.anchors[anchor] = 1
            if "${" in event.value or event.value.startswith("$"):
                return "a config has no expressions and no variables of the environment ($)"
        if len(self.open) > DEPTH:
            return f"nested deeper than {DEPTH} levels"
        return f"more than {VALUES:,} values, with each alias written out" if self.values > VALUES else ""


def _check(text: str, path: Path) -> None:
    """Look at the text as events, of which none is kept."""
    count = _Count()
    for event in yaml.parse(text, yaml.SafeLoader):
        if wrong := count.take(event):
            raise UserError(f"{path}, line {event.start_mark.line + 1}: {wrong}")


def _lines(node: yaml.Node, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line of everything by the way to it; the node is known to be small."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            inner = (*place, str(number))
            yield inner, value.start_mark.line + 1
            yield from _lines(value, inner)


def line_of(message: str, lines: Mapping[str, int]) -> int | None:
    """The line of the value that an error begins with (``task.init_args.crops[0]: ...``); None if it is not known."""
    name = message.split(":", 1)[0].replace("[", ".").replace("]", "")
    return lines.get(name)
