"""The benchmark's ``table.json``, every method on every shift, as types, as tables in Markdown and in three lines.

    gap closed = (mean IoU of a method - lower bound) / (upper bound - lower bound)
    regret     = mean IoU of the best method - that of the one recommended without labels

A cell that is missing, or has no mean IoU, was not computed; its ``why`` says why. ``documents.py`` writes the tables
and texts between markers, ``heat_map.py`` draws the picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import Field

from unicorn_monai.report.results import LOWER, UPPER, Interval, Number, Part, read
from unicorn_monai.report.tables import Rows, cell, shown

METHODS = (  # in this order; one with "+real" and the like comes after the one without
    *(LOWER, "augmentation", "augmentation+geometry", "self_training+geometry", "self_training+chosen"),
    *("svdna", "fda", "histogram", "random_contrast", "synthseg", "batch_norm", "pseudo_labels"),
    *("cyclegan", "cut", "accut", "cycada", "tsynd", "semantic_only", "unicorn_paper", "unicorn", "unicorn_plus"),
)
SMALL_REGRET, CLOSE = 0.02, 0.05  # what a recommendation and its estimate are to keep


class Cell(Part):
    """A method on a shift."""

    mean_iou: Number = None
    ci95: Interval = None
    ci_unit: str | None = None  # what was resampled
    mean_iou_labelled_device: Number = None
    ece: Number = None  # expected calibration error
    trainings: Number = None
    commit: str | None = None
    why: str | None = None  # not computed


class Difference(Part):
    """Mean IoU of a method minus that of the strongest opponent, paired."""

    mean: Number = None
    ci95: Interval = None


class Advice(Part):
    """What is recommended without labels."""

    method: str | None = None
    mean_iou: Number = None  # of what was chosen, in each fold by itself
    criterion: str | None = None
    estimate: Number = None
    regret: Number = None
    regrets: dict[str, Number] = Field(default_factory=dict)  # of what each criterion would have chosen
    errors: dict[str, Number] = Field(default_factory=dict)  # of what each estimator expects of the one chosen
    not_computed: str | None = None


class Shift(Part):
    """All methods on a shift."""

    methods: dict[str, Cell] = Field(default_factory=dict)
    strongest: str | None = None  # opponent, by the validation images of the unlabelled domain
    unicorn_plus_minus_strongest: Difference = Difference()
    recommendation: Advice = Advice()

    def score(self, method: str | None) -> float | None:
        """Mean IoU of a method; None where it was not computed."""
        return self.methods.get(method or "", Cell()).mean_iou

    def closed(self, method: str) -> float | None:
        """Share of the gap between the bounds; None where one of the three is missing, or there is no gap."""
        lower, upper, score = (self.score(name) for name in (LOWER, UPPER, method))
        if lower is None or upper is None or score is None or upper <= lower:
            return None
        return (score - lower) / (upper - lower)


class Table(Part):
    """All of ``table.json``."""

    shifts: dict[str, Shift] = Field(default_factory=dict)
    not_run: list[str] = Field(default_factory=list)  # shifts without a cell

    @property
    def methods(self) -> list[str]:
        """Every method of any shift, the lower bound first, the upper bound last."""
        return sorted({name for shift in self.shifts.values() for name in shift.methods}, key=_place)


def read_table(path: Path) -> Table:
    """A ``table.json``; refused if it has no shift, or an entry of another type."""
    table = read(path, Table)
    if not table.methods:
        raise ValueError(f"'{path}' has no method on any shift; expected the table that the benchmark writes.")
    return table


def _place(method: str) -> tuple[int, str]:
    """Where a method stands among the others: after the longest known name that it begins with."""
    known = [i for i, name in enumerate(METHODS) if method == name or method.startswith(f"{name}+")]
    last = len(METHODS) + (method == UPPER)
    return max(known, key=lambda i: len(METHODS[i]), default=last), method


# ---------------------------------------------------------------- tables


def scores(table: Table) -> Rows:
    """Mean IoU of every method on every shift, with its interval; the strongest opponent is bold."""

    def entry(shift: Shift, method: str) -> str:
        one = shift.methods.get(method, Cell())
        if one.mean_iou is None:
            return ""
        text = f"{one.mean_iou:.3f}" + (f" ({shown(one.ci95, '.3f')})" if one.ci95 else "")
        return f"**{text}**" if method == shift.strongest else text

    return _table(table, entry)


def closed(table: Table) -> Rows:
    """Share of the gap that every method closes on every shift."""
    return _table(table, lambda shift, method: _or_empty(shift.closed(method), ".0%"))


def at_home(table: Table) -> Rows:
    """Mean IoU of every method on the labelled device."""
    return _table(table, lambda shift, name: _or_empty(_of(shift, name).mean_iou_labelled_device, ".3f"))


def calibration(table: Table) -> Rows:
    """Expected calibration error of every method on the device without labels."""
    return _table(table, lambda shift, name: _or_empty(_of(shift, name).ece, ".3f"))


def shifts(table: Table) -> Rows:
    """Of every shift the strongest opponent, what is better or worse by how much, and where the numbers come from."""
    rows = [["shift", "strongest opponent", "its mean IoU", "unicorn_plus minus it", "intervals over", "commits"]]
    for name, shift in table.shifts.items():
        gain, units = shift.unicorn_plus_minus_strongest, {c.ci_unit for c in shift.methods.values() if c.ci_unit}
        ends = f" ({shown(gain.ci95, '+.3f')})" if gain.ci95 else ""
        commits = dict.fromkeys(c.commit[:7] for c in shift.methods.values() if c.commit)
        first = [cell(name), cell(shift.strongest or ""), _or_empty(shift.score(shift.strongest), ".3f")]
        rows.append([*first, shown(gain.mean, "+.3f") + ends, cell(", ".join(sorted(units))), ", ".join(commits)])
    return rows


def recommendations(table: Table) -> Rows:
    """Of every shift the network recommended without labels, what was expected of it, what it has, and its regret."""
    rows = [["shift", "recommended", "criterion", "expected mean IoU", "true mean IoU", "regret"]]
    for name, shift in table.shifts.items():
        one = shift.recommendation
        words = [cell(name), cell(one.method or f"not computed: {one.not_computed or 'none made'}")]
        numbers = (one.estimate, one.mean_iou, one.regret)
        rows.append([*words, cell(one.criterion or ""), *(_or_empty(number, ".3f") for number in numbers)])
    return rows


def criteria(table: Table) -> Rows:
    """Regret of what every criterion would have chosen on every shift, and the worst of each."""
    return _record(table, lambda shift: shift.recommendation.regrets, ".3f", "criterion")


def estimates(table: Table) -> Rows:
    """Error of what every estimator expects of the recommended network on every shift, and the largest."""
    return _record(table, lambda shift: shift.recommendation.errors, "+.3f", "estimator")


def _record(table: Table, values: Callable[[Shift], dict[str, Number]], form: str, what: str) -> Rows:
    """Criteria or estimators in rows, shifts in columns, and at the end what is farthest from 0."""
    names = dict.fromkeys(name for shift in table.shifts.values() for name in values(shift))
    rows = [[what, *map(cell, table.shifts), "worst"]]
    for name in names:
        found = [values(shift).get(name) for shift in table.shifts.values()]
        worst = max((value for value in found if value is not None), key=abs, default=None)
        rows.append([cell(name), *(_or_empty(value, form) for value in (*found, worst))])
    return rows if names else [*rows, ["not computed", *[""] * (len(table.shifts) + 1)]]


def _table(table: Table, entry: Callable[[Shift, str], str]) -> Rows:
    """Methods in rows, shifts in columns."""
    rows = [["method", *map(cell, table.shifts)]]
    return rows + [[cell(name), *(entry(shift, name) for shift in table.shifts.values())] for name in table.methods]


def _of(shift: Shift, method: str) -> Cell:
    return shift.methods.get(method, Cell())


def _or_empty(value: float | None, form: str) -> str:
    return "" if value is None else shown(value, form)


# ---------------------------------------------------------------- texts


def in_three_lines(table: Table) -> str:
    """What the benchmark says: the gap and the opponents, the method against the strongest of them, the advice."""
    everything = [*table.shifts.values()]
    lines = (_opponents(everything), _gains(everything), _advice(everything))
    return "\n".join(f"- {line}" for line in lines)


def _opponents(everything: list[Shift]) -> str:
    strongest = [shift.strongest for shift in everything if shift.strongest]
    often = sorted(set(strongest), key=lambda name: (-strongest.count(name), name))
    named = ", ".join(f"{cell(name)} ({strongest.count(name)})" for name in often)
    reached = _range((shift.closed(shift.strongest) for shift in everything if shift.strongest), ".0%")
    augmented = _range((shift.closed("augmentation") for shift in everything), ".0%")
    closed = f"strong augmentation closes {augmented} of the gap between the bounds, the strongest opponent {reached}"
    return f"**Opponents.** On {_counted(everything)}, {closed}: {named or 'not computed'}."


def _gains(everything: list[Shift]) -> str:
    gains = [gain for shift in everything if (gain := shift.unicorn_plus_minus_strongest).mean is not None]
    if not gains:
        return "**UnIACorN** against the strongest opponent: not computed."
    better = sum(bool(gain.ci95 and gain.ci95[0] > 0) for gain in gains)
    worse = sum(bool(gain.ci95 and gain.ci95[1] < 0) for gain in gains)
    counts = f"better on {better}, worse on {worse}, undecided on {len(gains) - better - worse} (95 % intervals)"
    difference = _range((gain.mean for gain in gains), "+.3f")
    return f"**UnIACorN** minus the strongest opponent: {difference} mean IoU on {_counted(gains)}, {counts}."


def _advice(everything: list[Shift]) -> str:
    pairs = [(shift.recommendation.estimate, shift.recommendation.mean_iou) for shift in everything]
    errors = [abs(expected - true) for expected, true in pairs if expected is not None and true is not None]
    regrets = [value for shift in everything if (value := shift.recommendation.regret) is not None]
    if not regrets:
        return "**Without labels** no network is recommended yet."
    kept, near = sum(r <= SMALL_REGRET + 1e-9 for r in regrets), sum(e <= CLOSE + 1e-9 for e in errors)
    behind = f"at most {SMALL_REGRET} behind the best on {kept} of {_counted(regrets)} (at worst {max(regrets):.3f})"
    expected = f"its expected mean IoU within {CLOSE} on {near} of {len(errors)}"
    return f"**Without labels**, the recommended network is {behind}, {expected}."


def missing(table: Table) -> str:
    """What was not computed, and why, one line for each reason."""
    found = defaultdict[tuple[str, str], list[str]](list)
    for name, shift in table.shifts.items():
        for method in table.methods:
            if shift.score(method) is None:
                found[name, _of(shift, method).why or "no result"].append(method)
    found |= {(shift, "not run yet"): ["every method"] for shift in table.not_run}
    if absent := [name for name in METHODS if name not in table.methods]:
        found["every shift", "not run yet"] = absent
    lines = [f"- {cell(shift)}: {', '.join(map(cell, names))}: {cell(why)}" for (shift, why), names in found.items()]
    return "\n".join(lines) or "Every method was run on every shift."


def _counted(shifts: Sequence[object]) -> str:
    return f"{len(shifts)} shift{'' if len(shifts) == 1 else 's'}"


def _range(values: Iterable[float | None], form: str) -> str:
    numbers = sorted(value for value in values if value is not None)
    if not numbers:
        return "not computed"
    return shown(numbers[0], form) if len(numbers) == 1 else shown([numbers[0], numbers[-1]], form)


TABULATED = (scores, closed, at_home, calibration, shifts, recommendations, criteria, estimates)
TABLES: dict[str, Callable[[Table], Rows]] = {f"benchmark_{table.__name__}": table for table in TABULATED}
TEXTS: dict[str, Callable[[Table], str]] = {f"benchmark_{text.__name__}": text for text in (in_three_lines, missing)}
