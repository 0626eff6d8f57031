"""What a client may say: nothing that a configuration would evaluate, and only settings with a name, a type and limits.

MONAI's configurations evaluate strings that begin with `$` and look up those that begin with `@` or `%`. Requests with
such a value are refused as a whole; and what is not named by a task (``take``) is left out before the task sees it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import torch
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from unicorn_monai.system.records import expected

MARKS = ("$", "@", "%")
DEEPEST = 20  # tables in tables
LONGEST = 200  # name of a file, in bytes
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199}")  # of studies and tags: they become names of files

Sent = TypeVar("Sent")


class Unknown(ValueError):
    """A name that the server does not know; becomes status 404."""


def refuse_expressions(value: Any, where: str = "the request", depth: int = 0) -> None:
    """Look through everything a client sent, keys too; refused are also tables that are nested too deeply."""
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
    """A name that must be one of those there are, else :class:`Unknown`."""
    if not isinstance(name, str) or name not in names:
        listed = (", ".join(sorted(names)[:20]) or "none") + (", ..." if len(names) > 20 else "")
        raise Unknown(f"There is no {what} {str(name)[:80]!r}; there are: {listed}.")
    return name


def file_name(what: str, name: str) -> str:
    """A name that becomes part of a file's: letters, digits, `_ . + -` and spaces, no folder."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"The {what} {str(name)[:80]!r} cannot be used; expected letters, digits, `_ . + -` and spaces."
        )
    return name


def short_name(name: str) -> str:
    """The name of an uploaded file, which its temporary file here ends like; clients send whole paths, too."""
    if len(name.rpartition("/")[2].encode()) > LONGEST or "\0" in name:
        raise ValueError(f"The file name {name[:80]!r}... cannot be used; expected at most {LONGEST} characters.")
    return name


def number(low: float, high: float) -> Any:
    """What makes of ``float`` in ``Annotated`` a number from ``low`` to ``high``."""
    return Field(ge=low, le=high, allow_inf_nan=False, description=f"a number from {low} to {high}")


def whole(low: int, high: int) -> Any:
    """What makes of ``int`` in ``Annotated`` a whole number from ``low`` to ``high``."""
    return Field(ge=low, le=high, description=f"a whole number from {low} to {high}")


def _there(value: Any) -> str:
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names = ["cpu", *["cuda"][: len(gpus)], *gpus, *["mps"] * torch.backends.mps.is_available()]
    if value not in names:
        raise ValueError(f"one of {names}")
    return value


# Clients that send the whole list of a choice mean its first; and True would be the number 1.
FIRST = BeforeValidator(lambda value: value[0] if isinstance(value, list) and value else value)
NUMERIC = BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)
Device = Annotated[str, BeforeValidator(_there), FIRST]  # one that this machine has; the last validator is the first
Flag = Annotated[
    bool,
    BeforeValidator(lambda value: {"true": True, "false": False}.get(str(value).lower())),
    Field(description="true or false"),
]


def take(request: Mapping[str, Any], kind: type[Sent]) -> Sent:
    """The settings that a task knows, of the types of a ``TypedDict``; absent, null and all other ones are left out."""
    try:
        return TypeAdapter(kind).validate_python({k: value for k, value in request.items() if value is not None})
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        words = expected(get_type_hints(kind, include_extras=True)[name]) or wrong["ctx"]["error"]
        raise ValueError(f"'{name}' is {str(request[name])[:80]!r}; expected {words}.") from None
