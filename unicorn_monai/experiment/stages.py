"""A stage of an experiment as an object, and what follows from what it needs and makes.

the order        the first declared stage comes next whose needs are there
side by side     stages of which none needs another can run at a time (``experiment/processes.py``)
the resumption   a finished stage has left a marker and is not run again; a measurement of something that is yet to
                 be made is taken anew (``experiment/runner.py``)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching


@dataclass(frozen=True)
class Stage:
    """One piece of work of an experiment."""

    name: str  # of its marker, its command and its run in MLflow; others that need its result name it so
    needs: tuple[str, ...]  # what must be there before: things that other stages make, or names of stages
    makes: tuple[str, ...]  # what is there afterwards; a stage that makes nothing measures
    work: Callable[[], Any]  # does it; what it returns, JSON, is its result
    result: tuple[str, ...] = ()  # where that stands in ``results.json``, key within key; nowhere by default
    alone: bool = False  # nothing runs beside it, and it has all cores
    # What a ``ValueError`` explains, such as a feature network that does not fit the images, does not end the run: the
    # reason is its result, and a resumption tries again.
    optional: bool = False
    kept: bool = True  # False for a gate or a summary, which has no marker: it is looked at in every run

    def __post_init__(self) -> None:
        if self.optional and not self.alone:
            raise ValueError(f"'{self.name}' is optional, but not alone: another process could not tell its reason.")

    @property
    def things(self) -> set[str]:
        """What others can need of it."""
        return {self.name, *self.makes}


def ordered(stages: Sequence[Stage]) -> list[Stage]:
    """The order in which one process runs them: the first declared stage comes next whose needs are there.

    Raises:
        ValueError: two stages of one name or that make the same, or one that needs what no other makes before it.
    """
    made = Counter(thing for stage in stages for thing in stage.things)
    if twice := [thing for thing, times in made.items() if times > 1]:
        raise ValueError(f"{twice} are each the name of, or made by, two stages. Rename one, or what it makes.")
    found, there, left = list[Stage](), set[str](), list(stages)
    while left:
        ready = next((stage for stage in left if there.issuperset(stage.needs)), None)
        if ready is None:
            lacking = {stage.name: sorted(set(stage.needs) - there) for stage in left}
            raise ValueError(f"No stage makes what these need, or only after them: {lacking}. Correct needs and makes.")
        left.remove(ready)
        found.append(ready)
        there |= ready.things
    return found


def needed(stages: Sequence[Stage], names: Collection[str]) -> list[Stage]:
    """The stages of these names and all that they need, in order."""
    found, wanted = list[Stage](), set(names)
    for stage in reversed(ordered(stages)):
        if stage.name in names or wanted & stage.things:
            found.insert(0, stage)
            wanted |= set(stage.needs)
    return found


def widest(stages: Sequence[Stage]) -> int:
    """How many can run at a time at most, whatever they take: the largest set of which none needs another.

    By Dilworth's theorem that is their number less the largest matching between stages and those that come after them.
    """
    after: dict[str, set[str]] = {}  # stage -> all that it needs, directly or not
    for stage in stages:
        direct = {other.name for other in stages if other.things & set(stage.needs)}
        after[stage.name] = direct.union(*(after.get(name, set()) for name in direct))
    kept = [stage.name for stage in stages if stage.kept]
    graph = csr_matrix([[int(one in after[other]) for other in kept] for one in kept])
    return len(kept) - int((maximum_bipartite_matching(graph) >= 0).sum()) if kept else 0
