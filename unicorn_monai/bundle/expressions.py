"""What MONAI runs, looks up or replaces in a configuration; everything else there is data.

    $...               an expression, evaluated by Python
    %...               another entry or file, taken in
    @id::id            as the whole text: another entry
    {"_target_": ...}  a component, which is called; further keys that begin with `_` tell how
    #                  in any text, read as `::`

Settings, headers of data sets and paths come from elsewhere and are data: what they change in a configuration must be
data before and after (:func:`changed_wiring`), and as values they must be texts that MONAI takes as they are
(:func:`require_literal`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from unicorn_monai.data.remote import is_url

_REFERENCE = re.compile(r"@\w*(::\w*)*")
_BASE = ("base_bundle", "base_config")  # names of other files
_SEPARATORS = re.compile(r"#|::")  # of ids, in names of entries
_REPLACED = re.compile(r"#|[@%]::")  # `@::id` and `%::id` are ids relative to the entry


def is_reference(text: Any) -> bool:
    """Whether MONAI takes another entry of the configuration for this text."""
    return isinstance(text, str) and _REFERENCE.fullmatch(text.replace("#", "::")) is not None


def is_wired(text: Any) -> bool:
    """Whether a value is a text that MONAI evaluates, or takes something else for."""
    return isinstance(text, str) and (text.startswith(("$", "%")) or is_reference(text))


def wiring(node: Any, key: str = "") -> dict[str, Any]:
    """Everything of a configuration that is not data, by id.

    Expressions and references as they stand, of components the names of their arguments and every entry that begins
    with ``_``, and entries whose names MONAI would divide.

    Args:
        node: the configuration, or a part of it.
        key: its id.
    """
    found: dict[str, Any] = {}
    if is_wired(node):
        found[key] = node
    if isinstance(node, Mapping) and "_target_" in node:
        found[key] = sorted(map(str, node))
    for name, child in _children(node):
        own = f"{key}::{name}".removeprefix("::")
        if isinstance(name, str) and (not name or _SEPARATORS.search(name)):
            _add(found, {own: {name: child}})  # under the id that MONAI makes of it, where another entry may stand
        elif (isinstance(name, str) and name.startswith("_")) or (not key and _is_special(name)):
            _add(found, {own: child})
        else:
            _add(found, wiring(child, own))
    return found


def _is_special(name: Any) -> bool:
    """Whether a name at the top is no entry of its own: another file, or `+NAME`, which MONAI merges into NAME."""
    return name in _BASE or (isinstance(name, str) and name.startswith("+"))


def _add(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add entries; where two have one id, both are kept: which of them MONAI would take must not matter."""
    for key, value in more.items():
        found[key] = [found[key], value] if key in found else value


def changed_wiring(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Ids at which two configurations run or refer to something else."""
    one, other = wiring(before), wiring(after)
    return [key for key in dict.fromkeys([*one, *other]) if _differs(one, other, key)]


def _differs(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    return key not in one or key not in other or one[key] != other[key]


def require_literal(value: Any, name: str) -> None:
    """Refuse texts that MONAI would not take as they are, at any depth.

    Raises:
        ValueError: naming the entry, the text, what MONAI makes of it and what to do.
    """
    require_data(value, name)
    for key, text in _texts(value, name):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"'{key}' is {text!r}, which no file can be called; expected readable letters.")
        if is_reference(text):
            raise ValueError(
                f"'{key}' is {text!r}, for which MONAI takes another entry of the configuration; expected a plain "
                f"value. The path of a file or folder may be written './{text}'."
            )
        if found := _REPLACED.search(text):
            means = "reads '#' as '::'" if found[0] == "#" else f"takes '{found[0]}' for the beginning of another entry"
            thing = "bucket" if is_url(text) else "file or folder"
            raise ValueError(
                f"'{key}' is {text!r}, in which MONAI {means}; expected a text without it. Rename the {thing}, or what "
                "is named."
            )


def require_data(value: Any, name: str) -> None:
    """Refuse what MONAI would run or read.

    Raises:
        ValueError: a text that begins with `$` (an expression) or `%` (another file), or a ``_target_``, at any depth.
    """
    for key, child in _children(value):
        require_data(child, f"{name}::{key}")
    code = isinstance(value, str) and value.startswith(("$", "%"))
    if code or (isinstance(value, Mapping) and "_target_" in value):
        raise ValueError(
            f"'{name}' is {value!r}, which MONAI would run as code; expected a plain value. Write it into the "
            "configuration of the bundle, if it is yours; the path of a file or folder may be written './...'."
        )


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        yield from node.items()
    elif isinstance(node, list | tuple):
        yield from enumerate(node)


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    for name, child in _children(node):
        yield from _texts(child, f"{key}::{name}")
