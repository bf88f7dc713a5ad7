"""YAML as recipes and specs need it: a small, shallow text of plain values.

Beyond what `safe_load` refuses (tags that make objects), aliases are, which a few lines can multiply into gigabytes;
keys that come twice, of which YAML would take the last without a word; and numbers of any length.
"""

from pathlib import Path
from typing import Any

import yaml

from data_specs.untrusted_files import read_bounded

MOST_BYTES = 64 << 10
_MOST_LEVELS = 16
_MOST_BITS = 64
_DAMAGED = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What PyYAML trips over: `!!bool x` is a KeyError, a thirteenth month a ValueError."""


class PlainYamlError(ValueError):
    """A text that is not YAML, or more than plain YAML; the message says where."""


def read_yaml(path: str | Path) -> Any:
    """What a YAML file says. Raises OSError where it cannot be read, PlainYamlError for what it says."""
    return parse_yaml(read_bounded(path, MOST_BYTES))


def parse_yaml(text: str | bytes) -> Any:
    """What a YAML text (UTF-8) says: dictionaries, lists, texts, numbers, dates. Raises PlainYamlError."""
    if len(text) > MOST_BYTES:
        raise PlainYamlError(f"has {len(text)} bytes, more than the {MOST_BYTES} that are read of such a file")
    try:
        loader = _PlainLoader(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _DAMAGED as error:
        raise PlainYamlError(f"not YAML: {error}" if str(error) else f"not YAML: {type(error).__name__}") from error


class _PlainLoader(yaml.SafeLoader):
    _level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _problem(f"the alias *{event.anchor}; write out what it stands for", event)
        if self._level >= _MOST_LEVELS:
            raise _problem(f"nested more than {_MOST_LEVELS} levels deep", event)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """In place of merging: what is merged is hard to see, and can come twice."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key that is not a plain value", key)
            if key.tag == "tag:yaml.org,2002:merge":
                raise _problem("the merge key <<; write out what it stands for", key)
            if (key.tag, key.value) in seen:
                raise _problem(f"the key {key.value!a} comes twice", key)
            seen.add((key.tag, key.value))

    def construct_yaml_int(self, node: Any) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > _MOST_BITS:
            raise _problem(f"a number of more than {_MOST_BITS} bits", node)
        return int(value)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def _problem(what: str, place: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=place.start_mark)
