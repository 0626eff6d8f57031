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


def wiring(config: Any) -> dict[str, Any]:
    """Everything of a configuration that is not data, by id.

    Expressions and references as they stand, of components the names of their arguments and every entry that begins
    with ``_``, and entries whose names MONAI would divide.
    """
    found: dict[str, Any] = {}
    for key, value in _wired(config, ""):  # where two have one id, both are kept: which MONAI takes must not matter
        found[key] = [found[key], value] if key in found else value
    return found


def _wired(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if is_reference(node) or (isinstance(node, str) and node.startswith(("$", "%"))):
        yield key, node
    if isinstance(node, Mapping) and "_target_" in node:
        yield key, sorted(map(str, node))
    for name, child in children(node):
        own, text = f"{key}::{name}".removeprefix("::"), str(name)
        if not text or _SEPARATORS.search(text):
            yield own, {name: child}  # under the id that MONAI makes of it, where another entry may stand
        elif text.startswith("_") or (not key and (text in _BASE or text.startswith("+"))):  # + merges it into another
            yield own, child
        else:
            yield from _wired(child, own)


def changed_wiring(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Ids at which two configurations run or refer to something else."""
    one, other, nothing = wiring(before), wiring(after), object()
    return [key for key in one | other if one.get(key, nothing) != other.get(key, nothing)]


def require_literal(value: Any, name: str) -> None:
    """Refuse texts that MONAI would not take as they are, at any depth."""
    require_data(value, name)
    for key, text in texts(value, name):
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
    """Refuse, at any depth, what MONAI would run or read: `$` (an expression), `%` (another file), a ``_target_``."""
    for key, child in children(value):
        require_data(child, f"{name}::{key}")
    code = isinstance(value, str) and value.startswith(("$", "%"))
    if code or (isinstance(value, Mapping) and "_target_" in value):
        raise ValueError(
            f"'{name}' is {value!r}, which MONAI would run as code; expected a plain value. Write it into the "
            "configuration of the bundle, if it is yours; the path of a file or folder may be written './...'."
        )


def children(node: Any) -> Iterator[tuple[Any, Any]]:
    """Entries of a part of a configuration, by name or place; none of a value."""
    if isinstance(node, Mapping):
        yield from node.items()
    elif isinstance(node, list | tuple):
        yield from enumerate(node)


def texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a part of a configuration with its id (the end of it, where that is long)."""
    if isinstance(node, str):
        yield key, node
    for name, child in children(node):
        yield from texts(child, f"{key[-400:]}::{str(name)[:400]}".removeprefix("::"))
