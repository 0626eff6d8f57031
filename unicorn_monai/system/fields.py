"""What an entry may be, said once by its annotated type: pydantic checks it, the description of the type tells it.

Share = Annotated[int | float, Field(ge=0, le=1, description="a number, 0 to 1")]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

Rule = tuple[Callable[[Any], bool], str]
STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # "3", true and 1.0 are no whole numbers


def one_of(known: Iterable[str]) -> Any:
    """What makes of ``str`` in ``Annotated`` one of some texts."""
    return Field(pattern=f"^({'|'.join(map(re.escape, known))})$", description=f"one of {list(known)}")


def expected(kind: Any) -> str | None:
    """The description of an annotated type, its last one."""
    words = [note.description for note in kind.__metadata__ if isinstance(note, FieldInfo) and note.description]
    return words[-1] if words else None


def obeys(kind: Any, value: Any) -> bool:
    """Whether a value is of an annotated type, as it is: nothing is converted."""
    try:
        _adapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def rules_of(record: type) -> dict[str, Rule]:
    """What the annotated types of a class say about its entries, one by one: whether a value obeys, and the words."""
    kinds = get_type_hints(record, include_extras=True)
    return {name: (partial(obeys, kind), expected(kind) or "") for name, kind in kinds.items()}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=STRICT)
