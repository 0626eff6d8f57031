"""Splits are by subject, never by image: B-scans of one eye are not independent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.privacy import one_form
from unicorn_monai.data.domain_pair import splits_by_subject
from unicorn_monai.data.layout import SPLITS, read_header
from unicorn_monai.system.files import parse_json

ABOUT = "about"  # words for people in a file of splits, which JSON has no comments for
EXAMPLE = '{"training": ["patient1", "patient2"], "validation": ["patient3"], "test": ["patient4"]}'


def split_by_subject(subjects: Sequence[str], split: Sequence[float], seed: int) -> dict[str, str]:
    """Subject -> training, validation or test, at random, in the order given; shares above zero get at least one."""
    shares = shares_of(split)
    n, wanted = len(subjects), int((shares > 0).sum())
    if n < wanted:
        raise ValueError(
            f"{n} subjects cannot fill {wanted} splits, which share no subject; add subjects or set a share to 0"
        )
    shares = shares / shares.max()  # their sum is finite
    counts = np.where(shares > 0, np.maximum(np.rint(n * shares / shares.sum()), 1), 0).astype(int)
    while counts.sum() != n:  # rounding: the largest part gives or takes
        counts[np.argmax(counts)] += np.sign(n - counts.sum())
    names = np.repeat(SPLITS, counts)
    order = np.random.default_rng([seed, 4]).permutation(n)
    assigned = dict(zip((subjects[i] for i in order), names.tolist(), strict=True))
    return {subject: assigned[subject] for subject in subjects}


def split_like(
    other: Path, subjects: Sequence[str], split: Sequence[float], seed: int, fixed: Mapping[str, str]
) -> dict[str, str]:
    """Give subjects the split they have in another data set, e.g. of a second device that has seen the same people.

    Pseudonyms, each once, were made with the same key in both. Who is not in the other comes, in random order, where
    most subjects are lacking by the shares of the split. Fixed is what the source decides.
    """
    known = splits_by_subject(read_header(other))
    parts = {subject: known[subject] for subject in subjects if subject in known}
    if not parts:
        raise ValueError(
            f"--split-like '{other}': none of the {len(subjects)} subjects is among its {len(known)}. Were both "
            "converted with the same --key-file, and the same --subject-pattern? If nobody was seen by both devices, "
            "leave the option out."
        )
    if elsewhere := sum(fixed.get(subject, part) != part for subject, part in parts.items()):
        raise ValueError(
            f"--split-like '{other}': {elsewhere} subjects are in another split there than the source says, whose "
            "splits are official. Convert the other data set like this one instead."
        )
    parts |= fixed
    free = [subject for subject in subjects if subject not in parts]
    if free:
        wanted = dict(zip(SPLITS, shares_of(split) / sum(split) * len(subjects), strict=True))
        filled = {name: sum(part == name for part in parts.values()) for name in SPLITS}
        for i in np.random.default_rng([seed, 4]).permutation(len(free)):
            most = max(SPLITS, key=lambda name: wanted[name] - filled[name])
            parts[free[i]] = most
            filled[most] += 1
    return {subject: parts[subject] for subject in subjects}


def split_as_listed(path: Path, subjects: Sequence[str], fixed: Mapping[str, str], tell: bool) -> dict[str, str]:
    """Give subjects, called as the files do, the split that a JSON file says: a split that can be published.

    Everybody stands in it once, and nobody else does. Fixed is what the source decides; the file must agree. Messages
    tell places in the file, and names only where ``tell`` says that they are no secret.
    """
    parts: dict[str, str] = {}
    for part, listed in _listed(path).items():
        for place, subject in enumerate(map(one_form, listed)):
            where = f"entry {place + 1} of '{part}'" + (f", '{subject}'," if tell else "")
            if subject in parts:
                raise ValueError(f"--splits '{path}': {where} stands in it twice; splits share no subject. Remove one.")
            parts[subject] = part
            if subject not in set(map(one_form, subjects)):
                raise ValueError(
                    f"--splits '{path}': {where} is none of the {len(subjects)} subjects found. Write subjects as the "
                    "files have them, before pseudonyms, or remove it."
                )
    if lacking := [subject for subject in subjects if one_form(subject) not in parts]:
        names = f" ({', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''})" if tell else ""
        raise ValueError(
            f"--splits '{path}': {len(lacking)} of the {len(subjects)} subjects found stand nowhere in it{names}. Add "
            f"each to one of {', '.join(SPLITS)}, or give an input without them."
        )
    if elsewhere := sum(parts[one_form(subject)] != part for subject, part in fixed.items()):
        raise ValueError(
            f"--splits '{path}': {elsewhere} subjects are in another split there than the source says, whose splits "
            "are official. Correct the file, or leave the option out."
        )
    return {subject: parts[one_form(subject)] for subject in subjects}


def _listed(path: Path) -> dict[str, list[str]]:
    """Split -> subjects, of a JSON file."""
    if not path.is_file():
        raise ValueError(f"--splits '{path}' is no file; expected JSON: {EXAMPLE}.")
    content: Any = parse_json(path)
    keys = set(content) if isinstance(content, dict) else set()
    if not keys.issuperset(SPLITS) or keys - {*SPLITS, ABOUT}:
        found = sorted(keys) if isinstance(content, dict) else f"{str(content)[:60]!r}"
        raise ValueError(f"--splits '{path}' holds {found}; expected {', '.join(SPLITS)}, as in {EXAMPLE}.")
    for part in SPLITS:
        if not (isinstance(content[part], list) and all(isinstance(s, str) and s.strip() for s in content[part])):
            raise ValueError(
                f"--splits '{path}': '{part}' is {str(content[part])[:60]!r}; expected a list of subjects."
            )
    return {part: content[part] for part in SPLITS}


def shares_of(split: Sequence[float]) -> np.ndarray:
    """Three finite shares >= 0 with a positive sum, as numbers."""
    shares = np.asarray(split, dtype=float)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise ValueError(f"split {tuple(split)}: expected three shares >= 0 for {', '.join(SPLITS)}, e.g. 0.7 0.1 0.2")
    return shares
