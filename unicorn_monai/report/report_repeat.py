"""Sections of the report about how the numbers came about: trainings, budget, seconds, and how to repeat them."""

from __future__ import annotations

import json
from typing import Any

from unicorn_monai.report.markup import MISSING, duration, name_of, nested, number, told


def trainings(settings: dict[str, Any]) -> str:
    """What several trainings of a set-up have in common, as a sentence."""
    count = number(settings.get("trainings")) or 1
    if count < 2:
        return ""
    return (
        f" Every segmentation network was trained {count:.0f} times with other seeds; scores are means. The generator "
        "was trained once, so its own seed is not in the spread."
    )


def budget(results: dict[str, Any]) -> str:
    """How long style transfer was trained, as a sentence; empty without it."""
    found = {key: value for key, value in nested(results, "budget").items() if value}
    if not found:
        return ""
    one = next(iter(found.values()))
    threads = ", ".join(f"{name_of(key)} on {told(value.get('threads'))}" for key, value in found.items())
    stages = ", ".join(str(stage).replace("_", "_<wbr>") for stage in one.get("stages") or [])
    return (
        f" Equal compute: {' and '.join(map(name_of, found))} had {duration(one.get('core_seconds'))} of core time "
        f"each (seconds times threads; {threads}), what UnIACorN needs before it can draw an image: {stages}."
    )


def seconds(found: dict[str, Any], wall: Any = None) -> str:
    """Time of every stage, as bars; their sum, and by the clock, which is less where stages ran side by side."""
    known = {key: value for key, value in found.items() if number(value) is not None}
    most, items = max(known.values(), default=0) or 1, ""
    for key, value in found.items():
        bar = f'<rect width="{100 * known.get(key, 0) / most:.1f}" height="8"/>'
        svg = f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{bar}</svg>'
        items += f"<li><span>{key.replace('_', '_<wbr>')}</span>{svg}<span>{duration(value)}</span></li>"
    clock = "" if number(wall) is None else f", some side by side: {duration(wall)} by the clock"
    total = f'<p>Together {duration(sum(known.values()))}{clock}.</p><ul class="stages">{items}</ul>'
    return total if items else f"<p>{MISSING}</p>"


def repeat(results: dict[str, Any], experiment: dict[str, Any]) -> str:
    """Command, versions and revision of the start, resumptions, sha256 of data sets and weights, settings, commands."""
    settings, command = nested(experiment, "settings"), experiment.get("command")
    text = f"<pre>{command}</pre>" if command else f"<p>Command: {MISSING}</p>"
    facts = {"seed": settings.get("seed"), "git revision": experiment.get("git_revision")}
    facts |= nested(results, "environment") | nested(experiment, "versions")
    text += _facts(facts)
    resumed = experiment.get("resumed") or []
    if resumed:
        lines = "".join(f"<pre>{_resumption(one, experiment)}</pre>" for one in resumed)
        times = "once" if len(resumed) == 1 else f"{len(resumed)} times"
        text += f"<p>The above is of the start; the run was resumed {times}.</p>"
        text += f"<details><summary>Resumptions</summary>{lines}</details>"
    hashes = nested(results, "sha256")
    text += "" if hashes else f"<p>Sha256 of data sets and weights: {MISSING}</p>"
    sections = (
        ("Sha256 of data sets and weights", hashes),
        ("All settings", settings),
        ("Command of every stage", nested(results, "commands")),
    )
    for title, part in sections:
        content = json.dumps(part, indent=2, ensure_ascii=False).replace('"', "&quot;")  # JSON's own
        text += f"<details><summary>{title}</summary><pre>{content}</pre></details>" if part else ""
    return text


def _resumption(one: dict[str, Any], start: dict[str, Any]) -> str:
    """Its command, and what is not as at the start."""
    lines = [str(one.get("command"))]
    if one.get("git_revision") != start.get("git_revision"):
        lines += [f"git revision {one.get('git_revision')}"]
    before = nested(start, "versions")
    lines += [f"{key} {value}" for key, value in nested(one, "versions").items() if value != before.get(key)]
    return "\n".join(lines)


def _facts(facts: dict[str, Any]) -> str:
    pairs = ((key, told(value)) for key, value in facts.items())
    return f'<dl class="facts">{"".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in pairs)}</dl>'
