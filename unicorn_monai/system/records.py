"""What may stand in JSON: each entry's type, said once, and what a run leaves, read with these types.

    RUN/experiment.json     settings and versions of the start, and of every resumption
    RUN/stages/STAGE.json   seconds, result and commands of a finished stage
    RUN/mlflow_run.json     id of the MLflow run

    Share = Annotated[int | float, Field(ge=0, le=1, description="a number, 0 to 1")]

A folder of somebody else may hold anything under these names: a known entry of a wrong type is refused by name, and
unknown ones are read by nobody. Pydantic checks the types, their description tells them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from unicorn_monai.system.files import PathLike, parse_json

logger = logging.getLogger("unicorn_monai")

Rule = tuple[Callable[[Any], bool], str]
STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # "3", true and 1.0 are no whole numbers
_adapter = cache(partial(TypeAdapter, config=STRICT))
_told: set[tuple[str, tuple[str, ...]]] = set()


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


def _rule(kind: Any, words: str) -> Rule:
    return partial(obeys, kind), words


_Length = Annotated[float, Field(gt=0)]
_Colour = Annotated[list[float], Field(min_length=3, max_length=3)]
TEXT = _rule(str, "a text")
TABLE = _rule(dict, "an object")
ANYTHING = _rule(Any, "anything")
NUMBER = _rule(float, "a finite number")
COUNT = _rule(Annotated[int, Field(ge=1, le=4096)], "a whole number, 1 to 4096")
SECONDS = _rule(Annotated[float, Field(ge=0)], "a finite number, 0 or more")
TEXTS = _rule(list[str] | tuple[str, ...], "a list of texts")
TABLES = _rule(list[dict], "a list of objects")
NAMED_TEXTS = _rule(dict[str, str], "an object of texts")
SPACING = _rule(
    Annotated[list[_Length], Field(min_length=2, max_length=2)] | tuple[_Length, _Length] | None,
    "[axial, lateral] in mm, finite and positive, or null",
)
COLOURS = _rule(list[_Colour], "a list of [red, green, blue]")
KNOWN = {  # entries of a header that this package reads or writes
    *("name", "modality", "device", "labels", "spacing_mm", "settings", "colours", "source", "seed"),
    *("phantom", "simulated", "simulated_device", "simulated_anatomy"),
    *("synthetic", "augmented", "pseudo_labels", "without_flagged"),
}

EXPERIMENT = {"settings": TABLE, "resumed": TABLES}
PRIOR = {
    **dict.fromkeys(("mean", "std", "offset", "scale", "samples"), NUMBER),
    **dict.fromkeys(("scaling", "segmentation_sha256", "distribution", "acquisition", "aggregation"), TEXT),
    **dict.fromkeys(("quantiles", "both_quantiles"), _rule(list[float], "a list of finite numbers")),
    "ensemble": NAMED_TEXTS,
}
SPENT = {"seconds": SECONDS, "core_seconds": SECONDS, "threads": SECONDS}
STAGE = {**SPENT, "result": ANYTHING, "commands": NAMED_TEXTS}
RUN_ID = {"run_id": _rule(Annotated[str, Field(pattern="^[0-9a-f]{32}$")], "32 digits, 0 to f")}


def take(content: Any, rules: Mapping[str, Rule], path: PathLike, needed: Collection[str] = ()) -> dict[str, Any]:
    """The known entries of what was read from a file; a ``ValueError`` where one is missing or of another type.

    ``rules``: what each entry may be; ``path``: of the file, for the message; ``needed``: entries that must be there.
    """
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is {str(content)[:60]!r}; expected a JSON object.")
    for name in needed:
        if name not in content:
            raise ValueError(f"'{path}' has no entry '{name}'; expected {rules[name][1]}. Write it again.")
    for name, (obeys, expected) in rules.items():
        if name in content and not obeys(content[name]):
            raise ValueError(f"'{name}' of '{path}' is {str(content[name])[:80]!r}; expected {expected}.")
    return {name: content[name] for name in rules if name in content}


def tell_unread(names: Collection[str], path: PathLike, kept: bool) -> None:
    """Tell of entries that nothing here reads; of the same ones in a file once."""
    key = (str(path), tuple(sorted(names)))
    if names and key not in _told:
        _told.add(key)
        what = "are kept as they are" if kept else "are left out"
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        logger.warning(f"Nothing reads the entries {list(key[1][:8])}{more} of '{path}'; they {what}.")


def read_record(run: Path) -> dict[str, Any]:
    """``experiment.json`` with an entry "settings"; versions and the like are kept as they are."""
    path = run / "experiment.json"
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; '{run}' is no folder of a run.")
    content = parse_json(path)
    take(content, EXPERIMENT, path, ["settings"])
    return content


def read_stage(path: Path) -> dict[str, Any]:
    """What a finished stage left: "seconds", "result", "commands", and "core_seconds" and "threads" if noted."""
    return take(parse_json(path), STAGE, path, ["seconds", "result", "commands"])


def read_spent(path: Path) -> dict[str, Any]:
    """What a stage has taken, finished or not."""
    return take(parse_json(path), SPENT, path, ["seconds"])


def read_run_id(path: Path) -> str:
    """The id of the MLflow run of a run folder."""
    return take(parse_json(path), RUN_ID, path, ["run_id"])["run_id"]


def read_prior(path: PathLike) -> dict[str, Any]:
    """The fields of an ``UncertaintyPrior`` that a file has."""
    fields = take(parse_json(path), PRIOR, path)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def read_flagged(run: Path) -> list[str]:
    """Images that the search for copies flagged, as ``results.json`` of a run tells; refused without a search."""
    path = run / "results.json"
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; '{run}' is no finished run.")
    found = take(parse_json(path), {"memorization": _rule(dict | None, "an object")}, path)
    audit = take(found.get("memorization") or {}, {"flagged": TEXTS, "not_computed": TEXT}, path)
    if "flagged" not in audit:
        reason = str(audit.get("not_computed", "no result")).rstrip(".")
        raise ValueError(f"The search for copies of '{run}' was not computed: {reason}.")
    return list(audit["flagged"])
