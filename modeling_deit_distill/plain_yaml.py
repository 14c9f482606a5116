"""YAML in which a word is that word, apart from numbers, `true`, `false` and `null` (the core schema of YAML 1.2).

PyYAML reads YAML 1.1, in which `no` and `on` are truth values, `010` is 8, `1:30` is 90 and `2024-01-01` a date, while
`1e5` is text.
"""

import json
import re

import yaml

NULL = "tag:yaml.org,2002:null"
CORE_SCHEMA = {
    "null": "null|Null|NULL|~|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema's scalars, and no others."""

    yaml_implicit_resolvers: dict = {}
    # Without dates, sets and bytes: JSON has none.
    yaml_constructors = {
        None: yaml.SafeLoader.construct_undefined,
        **{
            f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
            for kind in ("map", "seq", "str", "null", "bool", "float")
        },
    }


def _whole_number(_, node: yaml.ScalarNode) -> int:
    return int(node.value, 0) if node.value[:2] in ("0o", "0x") else int(node.value)


PlainLoader.add_constructor("tag:yaml.org,2002:int", _whole_number)
for kind, pattern in CORE_SCHEMA.items():
    PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z"), None)


def mapping_nodes(text: str) -> dict[str, yaml.Node]:
    """The values of a file of `key: value` lines by key, not interpreted yet.

    Raises:
        TypeError: no such lines; its message is the type of what is there.
        yaml.YAMLError: no YAML, or a key that stands there twice.
    """
    node = yaml.compose(text, PlainLoader)
    if not isinstance(node, yaml.MappingNode):
        raise TypeError(type(node and meaning(node)).__name__)
    nodes = {}
    for key, value in node.value:
        if written(key) in nodes:
            raise yaml.composer.ComposerError(None, None, f"the key {written(key)!r} is there twice", key.start_mark)
        nodes[written(key)] = value
    return nodes


def written(node: yaml.Node) -> str:
    """A scalar as it is written, without its quotes; what is more than a scalar as JSON."""
    return node.value if isinstance(node, yaml.ScalarNode) else json.dumps(meaning(node))


def meaning(node: yaml.Node) -> object:
    """A node's value: text, number, truth value, None, list or dictionary."""
    return PlainLoader("").construct_document(node)
