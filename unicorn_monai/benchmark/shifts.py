"""What a shift of the benchmark is: two data sets, and how often what is trained on them. All are in `shifts.json`.

    {"size": 64, "shifts": {NAME: {"labelled": [words], "other": [words], ...}}}

The words are those of `unicorn-monai prepare`, without an output. In them stand `{size}`: pixels; `{data}`: the folder
$UNICORN_DATA; `{here}`: the folder of the file; `{through}`: the data set that the command "through" makes, an input
of the other; and what a fold gives, which may be several words. A fold is a shift of its own, NAME/FOLD, for all but
the table, where it is one of the trials of a row.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from unicorn_monai.system.files import PathLike, parse_json
from unicorn_monai.system.records import Rule, rules_of, take

SHIFTS = Path(__file__).with_name("shifts.json")
SIDES = ("labelled", "other")  # domains; "through" leads to the second
NAMED = re.compile(r"[a-z0-9][a-z0-9_]*")  # names of shifts and folds: of folders, too
PLACEHOLDER = re.compile(r"\{(.*?)\}")
ALWAYS = {"size", "data", "here"}

_Text = Annotated[str, Field(min_length=1, description="a text")]
_Words = Annotated[list[_Text], Field(min_length=1, description="a list of words of `prepare`, the source first")]
_Folds = Annotated[
    dict[str, dict[str, list[_Text]]], Field(min_length=1, description="an object of folds, each an object of words")
]
_Places = Annotated[list[_Text], Field(description="a list of folders below $UNICORN_DATA")]
_Positive = Annotated[int, Field(ge=1, description="a whole number, 1 or more")]
_Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, description="a list of seeds")]
_Unit = Annotated[
    Literal["subjects", "groups", "image blocks"], Field(description="'subjects', 'groups' or 'image blocks'")
]
_Switch = Annotated[bool, Field(description="true or false")]


class _Entry:
    """What the file says of a shift."""

    about: _Text
    labelled: _Words
    other: _Words
    through: _Words
    needs: _Places
    trainings: _Positive
    seeds: _Seeds
    ci_unit: _Unit
    folds: _Folds
    sub_domains: _Switch


class _File:
    """The file."""

    about: _Text
    size: Annotated[int, Field(ge=8, le=4096, description="pixels, 8 to 4096")]
    shifts: Annotated[dict[str, Any], Field(min_length=1, description="an object of shifts")]
    overrides: Annotated[dict[str, Any], Field(description="an object of settings, as of an experiment")]


ENTRIES, FILE = rules_of(_Entry), rules_of(_File)
NEEDED = ("labelled", "other", "ci_unit")


@dataclass(frozen=True)
class Shift:
    """A labelled and another domain, or a fold of them."""

    name: str  # of the row in the table
    about: str  # for people: what it is, and why it is split so
    labelled: tuple[str, ...]  # words of `prepare`
    other: tuple[str, ...]
    through: tuple[str, ...]  # words of what `{through}` is; none where nothing is in between
    needs: tuple[str, ...]  # folders below $UNICORN_DATA
    trainings: int  # of every segmentation network
    seeds: tuple[int, ...]  # of runs, that is of generators
    ci_unit: str  # what is resampled for intervals
    sub_domains: bool  # whether every sub-domain of the other is a row of the table
    here: Path  # folder of the file
    folds: Mapping[str, Mapping[str, tuple[str, ...]]]
    fold: str | None = None  # which of them this is

    @property
    def key(self) -> str:
        """Name of what is run: NAME or NAME/FOLD, also of its folder."""
        return f"{self.name}/{self.fold}" if self.fold else self.name

    def parts(self) -> list[Shift]:
        """What is run for this row of the table: every fold, or the shift itself."""
        return [self] if self.fold or not self.folds else [replace(self, fold=fold) for fold in self.folds]

    def commands(self, size: int) -> dict[str, list[str]]:
        """The words of the commands by what they make, in order; places (`{data}`, ...) are still to be filled in."""
        if self.folds and self.fold is None:
            raise ValueError(f"'{self.name}' has folds, {list(self.folds)}; expected one of them, of `parts()`.")
        known = {"size": (str(size),), **(self.folds[self.fold] if self.fold else {})}
        made: dict[str, list[str]] = {}
        for side, words in (("labelled", self.labelled), ("through", self.through), ("other", self.other)):
            if words:
                made[side] = [new for word in words for new in known.get(word[1:-1] if _whole(word) else "", (word,))]
        return made


@dataclass(frozen=True)
class Benchmark:
    """All shifts, the size of their images, and settings of single bundles in all runs."""

    size: int
    shifts: dict[str, Shift]
    overrides: dict[str, Any] | None = None

    def chosen(self, names: Sequence[str] = ()) -> list[Shift]:
        """The shifts of these names, all where none is named."""
        if unknown := [name for name in names if name not in self.shifts]:
            raise ValueError(f"Unknown shift(s) {unknown}; expected some of {list(self.shifts)}. Check the spelling.")
        return [self.shifts[name] for name in dict.fromkeys(names or self.shifts)]


def read_shifts(path: PathLike = SHIFTS) -> Benchmark:
    """Read the definitions of shifts.

    Raises:
        ValueError: no JSON, a shift or an entry twice, one that is unknown, lacking or of another type, words that name
            an unknown place. Whether their data are there: `preparation.absent`.
    """
    parse_json(path)  # tells what is no JSON
    content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=partial(_each_once, path))
    _require_known(content, FILE, f"'{path}'")
    found = take(content, FILE, path, ("size", "shifts"))
    shifts = {name: _read(name, entry, path) for name, entry in found["shifts"].items()}
    return Benchmark(found["size"], shifts, found.get("overrides"))


def _read(name: str, content: Any, path: PathLike) -> Shift:
    where = f"{path}, shift {name}"
    _require_name(name, where)
    _require_known(content, ENTRIES, f"'{where}'")
    entry = take(content, ENTRIES, where, NEEDED)
    seeds = entry.get("seeds", [0])
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"'seeds' of '{where}' is {seeds}; expected each once.")
    folds = {fold: {key: tuple(words) for key, words in v.items()} for fold, v in entry.get("folds", {}).items()}
    shift = Shift(
        name,
        entry.get("about", ""),
        *(tuple(entry.get(side, ())) for side in (*SIDES, "through", "needs")),
        trainings=entry.get("trainings", 1),
        seeds=tuple(seeds),
        ci_unit=entry["ci_unit"],
        sub_domains=entry.get("sub_domains", False),
        here=Path(path).resolve().parent,
        folds=folds,
    )
    _require_sound(shift, where)
    return shift


def _require_sound(shift: Shift, where: str) -> None:
    """Refuse what no command could be made of."""
    given: set[str] = set()
    for fold, words in shift.folds.items():
        _require_name(fold, f"{where}, folds")
        given = given or set(words)
        if set(words) != given or given & {*ALWAYS, "through"}:
            expected = f"the same in every fold, here {sorted(given)}, and none of {sorted({*ALWAYS, 'through'})}"
            raise ValueError(f"Fold '{fold}' of '{where}' gives {sorted(words)}; expected {expected}.")
    for side in (*SIDES, "through"):
        known = ALWAYS | given | ({"through"} if side == "other" and shift.through else set())
        for word in getattr(shift, side):
            if word == "--output":
                raise ValueError(f"'{side}' of '{where}' has an --output; expected none: the benchmark says where.")
            for held in PLACEHOLDER.findall(word):
                if held not in known or (held in {"size", *given} and not _whole(word)):
                    expected = f"some of {sorted(known)}; of a size or a fold as a word of its own"
                    raise ValueError(f"'{side}' of '{where}' has the word '{word}'; expected {expected}.")
                if held == "data" and not shift.needs:
                    expected = "the folders below it, so that it can be told when they are not there"
                    raise ValueError(
                        f"'{side}' of '{where}' reads '{word}', and 'needs' is empty; expected {expected}."
                    )


def _whole(word: str) -> bool:
    """Whether a word is nothing but what stands in for it."""
    return PLACEHOLDER.fullmatch(word) is not None


def _each_once(path: PathLike, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON would take the last of two entries without a word."""
    if twice := sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1):
        raise ValueError(f"'{path}' has {twice} twice in one object; expected each once. Remove or rename one.")
    return dict(pairs)


def _require_known(content: Any, rules: Mapping[str, Rule], where: str) -> None:
    if isinstance(content, dict) and (unknown := sorted(set(content) - set(rules))):
        raise ValueError(f"{where} has the entries {unknown}; expected some of {list(rules)}. Check the spelling.")


def _require_name(name: str, where: str) -> None:
    if not NAMED.fullmatch(name):
        expected = "small letters, digits and underscores, as a folder may be called"
        raise ValueError(f"The name '{name}' in '{where}' cannot be used; expected {expected}. Rename it.")
