"""What a client may say: nothing that a configuration would evaluate, and only settings with a name, a type and limits.

MONAI's configurations evaluate strings that begin with `$` and look up those that begin with `@` or `%`. Requests with
such a value are refused as a whole; and what is not named by a task (``take``) is left out before the task sees it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

MARKS = ("$", "@", "%")
DEEPEST = 20  # tables in tables
LONGEST = 200  # name of a file, in bytes
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199}")  # of studies and tags: they become names of files

Check = Callable[[str, Any], Any]


class Unknown(ValueError):
    """A name that the server does not know; becomes status 404."""


def refuse_expressions(value: Any, where: str = "the request", depth: int = 0) -> None:
    """Look through everything a client sent, keys too.

    Raises:
        ValueError: a string begins with `$`, `@` or `%`, or tables are nested too deeply.
    """
    if depth > DEEPEST:
        raise ValueError(f"The request holds tables or lists in one another, more than {DEEPEST} deep; expected fewer.")
    if isinstance(value, str) and value.lstrip().startswith(MARKS):
        raise ValueError(
            f"{where} holds {value[:80]!r}; values that begin with one of {' '.join(MARKS)} are refused, since "
            "configurations would evaluate them. Give the value itself."
        )
    if isinstance(value, Mapping):
        for key, entry in value.items():
            refuse_expressions(key, where)
            refuse_expressions(entry, f"'{key}' of {where}", depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            refuse_expressions(entry, where, depth + 1)


def known(what: str, name: Any, names: Collection[str]) -> str:
    """A name that must be one of those there are.

    Raises:
        Unknown: it is not.
    """
    if not isinstance(name, str) or name not in names:
        listed = ", ".join(sorted(names)[:20]) or "none"
        raise Unknown(
            f"There is no {what} {str(name)[:80]!r}; there are: {listed}{', ...' if len(names) > 20 else ''}."
        )
    return name


def file_name(what: str, name: str) -> str:
    """A name that becomes part of a file's: letters, digits, `_ . + -` and spaces, no folder.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"The {what} {str(name)[:80]!r} cannot be used; expected letters, digits, `_ . + -` and spaces."
        )
    return name


def short_name(name: str) -> str:
    """The name of an uploaded file, which its temporary file here ends like; clients send whole paths, too.

    Raises:
        ValueError: the system could not store a file of that name.
    """
    if len(name.rpartition("/")[2].encode()) > LONGEST or "\0" in name:
        raise ValueError(f"The file name {name[:80]!r}... cannot be used; expected at most {LONGEST} characters.")
    return name


def number(low: float, high: float, whole: bool = False) -> Check:
    """A number from ``low`` to ``high``."""

    def check(name: str, value: Any) -> Any:
        try:
            result = float(value)
        except (TypeError, ValueError, OverflowError):
            result = float("nan")
        exact = value if isinstance(value, int) else result  # a float has no 2**63 - 1
        if isinstance(value, bool) or not low <= exact <= high or (whole and result != int(result)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"'{name}' is {str(value)[:80]!r}; expected {kind} from {low} to {high}.")
        return int(value if isinstance(value, int) else result) if whole else result

    return check


def one_of(*names: str) -> Check:
    """One of some names; clients that send the whole list of a choice mean its first."""

    def check(name: str, value: Any) -> str:
        value = value[0] if isinstance(value, list) and value else value
        if value not in names:
            raise ValueError(f"'{name}' is {str(value)[:80]!r}; expected one of {list(names)}.")
        return value

    return check


def flag(name: str, value: Any) -> bool:
    """True or false."""
    words = {"true": True, "false": False}
    if not isinstance(value, bool) and str(value).lower() not in words:
        raise ValueError(f"'{name}' is {str(value)[:80]!r}; expected true or false.")
    return value if isinstance(value, bool) else words[str(value).lower()]


def device(name: str, value: Any) -> str:
    """A device that this machine has; clients that send the whole list of devices mean its first."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return one_of("cpu", *["cuda"][: len(gpus)], *gpus, *["mps"] * torch.backends.mps.is_available())(name, value)


def take(request: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """The settings that a task knows, checked; absent and null ones are left out, and so is everything else.

    Raises:
        ValueError: a value of the wrong type or out of its limits.
    """
    return {name: check(name, request[name]) for name, check in checks.items() if request.get(name) is not None}
