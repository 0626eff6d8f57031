"""One HTML file that says what a run achieved, readable in two minutes by a clinician or an engineer.

The verdict comes first: how much of the gap between the bounds the retrained network closed,

    (mean IoU - lower bound) / (upper bound - lower bound),

and before it, where nothing could be scored, which network to use and how good it is expected to be. Then come the
numbers it rests on, the pictures, the checks and how to repeat it. The page is ``templates/report.html``, filled in
from typed results; every text is escaped there. It loads nothing (pictures are data URIs, charts are inline SVG, there
is no script) and what was not computed is called so, never 0.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError
from markupsafe import Markup

from unicorn_monai.report import figures, naming
from unicorn_monai.report import results as kinds
from unicorn_monai.report.checks import image_checks
from unicorn_monai.report.naming import MISSING, fixed, name_of, ordered, percent
from unicorn_monai.report.recommended import choices, networks_of, reason_of
from unicorn_monai.report.results import LOWER, MAIN, UPPER, Results, Scores, read, within
from unicorn_monai.system.files import PathLike, write_text

CORE = (LOWER, UPPER, MAIN, "unicorn")  # always have a column, the first ones
SETS = ("labeled", "unlabeled", "unicorn", "unicorn_paper")
WEATHER = {"fog", "night", "rain", "snow"}  # words of these are words for the weather
MISSING_HTML = Markup(f'<span class="none">{MISSING}</span>')
SHEET = 960  # pixels; a wider sheet is scaled down to what is there, not below this


def write_report(run_dir: PathLike) -> Path:
    """Write ``report.html`` into a run folder from its JSON files and pictures; returns its path.

    Raises:
        ValueError: ``results.json`` is missing (the other files may be), or a file does not hold what it should.
    """
    folder = Path(run_dir)
    if not (folder / "results.json").is_file():
        raise ValueError(f"'{folder}' holds no results.json. Let the experiment finish; --resume goes on with it.")
    write_text(folder / "report.html", render(folder))
    return folder / "report.html"


def render(folder: Path) -> str:
    """The page; a file that does not hold what it should is refused."""
    results, record = _load(folder, "results.json", Results), _load(folder, "experiment.json", kinds.Record)
    page, facts = _Page(folder, results), {"seed": record.chosen.seed, "git revision": record.git_revision}
    try:
        return page.template().render(
            page.values(),
            page=page,
            use=page.recommended(record),
            run=folder.resolve().name,
            record=record,
            captions=_load(folder, "pictures/captions.json", kinds.Captions),
            charts=page.charts(_load(folder, "uncertainties.json", kinds.Uncertainties)),
            facts=facts | results.environment | record.versions,
        )
    except (TemplateError, OverflowError, TypeError) as error:
        raise ValueError(
            f"results.json of '{folder}', or a file beside it, does not hold what an experiment writes "
            f"({type(error).__name__}: {error}). Let the experiment write it again; --resume does."
        ) from error


class Picture(NamedTuple):
    """A PNG file as part of the page."""

    data: str
    width: int
    height: int
    kind: str
    least: int


class _Page:
    """What the template asks for: names and numbers as they are called in this run, its pictures and charts."""

    def __init__(self, folder: Path, results: Results) -> None:
        self.folder, self.results = folder, results
        self.scenes = results.modality != "OCT"
        drawn = not results.segmentation or any(key.startswith("unicorn") for key in results.segmentation)
        core, best = (CORE, MAIN) if drawn else (CORE[:2], results.strongest.setup)
        others = [key for key in results.segmentation if key not in core]
        others.sort(key=lambda key: -results.scores.get(key, 0.0))
        self.main = best or next(iter(others), LOWER)  # whose part of the gap is told
        given = [*core, *others] if results.segmentation else []
        self.setups = {key: results.segmentation.get(key, Scores()) for key in given}

    def template(self) -> Template:
        """The template, with the names that this page has for things."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).with_name("templates")),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=lambda value: MISSING_HTML if value == MISSING else value,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        named = (self.name, self.here, self.difference, self.distance, fixed, percent, naming.duration, naming.drawn)
        others: dict[str, Callable[..., Any]] = {
            "short": lambda value: MISSING if value is None else f"{value:g}",
            "ends": lambda ends: f"{ends[0]:.3f}\u2013{ends[1]:.3f}" if ends else MISSING,
            "between": _between,
            "counted": lambda share: _below(f"{fixed(share.count, 0)} of {fixed(share.n, 0)}", _between(share.ci95)),
            "of_label": lambda scores, i: _at(scores.iou, i),
            "extract": lambda key, table: table[key],
            "of_domain": lambda scores, name: scores.sub_domains.get(name, kinds.Overlap()).mean_iou,
            "of_surface": lambda b, i: " / ".join(fixed(_at(errors, i), 1) for errors in (b.mean_um, b.p95_um)),
            "after": lambda name, word: f"{word} {name}",
            "breakable": lambda key: Markup("_<wbr>").join(str(key).split("_")),
            # Quotes within a text as they are, so that a command can be copied.
            "as_json": lambda part: json.dumps(part, indent=2, ensure_ascii=False).replace('\\"', '"'),
        }
        environment.filters |= {function.__name__: function for function in named} | others
        return environment.get_template("report.html")

    def values(self) -> dict[str, Any]:
        """Variables and functions of the template."""
        r = self.results
        ranked = [key for key in self.setups if key != UPPER and key in r.scores]
        best = list(self.setups).index(max(ranked, key=r.scores.__getitem__)) if ranked else -1
        most = max((len(scores.iou) for scores in self.setups.values()), default=0)
        closest = self.folder / "memorization" / "closest.png"
        return {
            "results": r,
            "MISSING": MISSING,
            "main": self.main,
            "device": "domain" if self.scenes else "device",
            "best": best,
            "labels": r.labels or [str(i) for i in range(most)],
            "sub_domains": list(dict.fromkeys(name for s in self.setups.values() for name in s.sub_domains)),
            "budgets": {key: budget for key, budget in r.budget.items() if budget},
            "measured": [key for key, scores in self.setups.items() if scores.boundary.mean_um],
            "at_home": [s.labelled_device for s in self.setups.values() if s.labelled_device.mean_iou is not None],
            "references": [key for key, part in r.differences.items() if part],
            "compared": list(dict.fromkeys(setup for part in r.differences.values() for setup in part)),
            "image_sets": ordered({**r.uncertainty, **r.fid.fid.get("unlabeled", {})}, SETS),
            "nothing": kinds.Spread(),
            "controls": {key: r.control[key] for key in ordered(r.control, ("control",))},
            "sets": ordered(r.fid.fid, SETS[:2]),
            "real": [name for name in SETS[:2] if name in r.fid.fid],
            "checks": image_checks(r),
            "closest": self.picture(Path("memorization", "closest.png")) if closest.is_file() else None,
        }

    def recommended(self, record: kinds.Record) -> dict[str, Any]:
        """What is said of the recommended network: why it, its weights, what serves it, what its choice cost."""
        part, run = self.results.recommendation, str(record.settings.get("output") or self.folder.resolve().name)
        weights = networks_of(self.folder).get(part.setup or "")
        scores = part.scores.get(part.criterion or "", {})
        rising = sorted((value, setup) for setup, value in scores.items() if value is not None)
        rows = [(self.name(setup), value, None) for value, setup in rising]
        drawn = part.setup and rows and not self.results.scores
        return {
            "why": reason_of(part.criterion),
            "weights": weights and weights.relative_to(self.folder),
            "command": f"unicorn-monai label --studies SCANS --run {shlex.quote(run)}",
            "chart": figures.dots(rows, self.name(part.setup or ""), ()) if drawn else "",
            "choices": choices(self.results),
        }

    def here(self, text: str) -> str:
        """A text of ours: devices are domains where the images are no OCT."""
        return re.sub(r"\bdevice\b", "domain", text) if self.scenes else text

    def name(self, key: str) -> str:
        """How a set-up or a set of images is called in this run."""
        words = "weather words" if self.results.words.keys() <= WEATHER else "words"
        name = name_of(key)
        if self.results.words:
            name = name.replace(naming.SEMANTIC_ONLY, f"Label map and {words}")
        return self.here(name) if key in naming.NAMES else name

    def difference(self, reference: str, setup: str) -> str:
        """Mean IoU of a set-up minus that of a reference."""
        found = self.results.differences[reference].get(setup)
        if setup == reference:
            return ""
        if found is None or found.difference is None:
            return MISSING
        ends = f"{fixed(found.ci95[0], 3)} to {fixed(found.ci95[1], 3)}" if found.ci95 else ""
        return _below("+" * (found.difference > 0) + fixed(found.difference, 3), ends)

    def distance(self, other: str, name: str) -> str:
        """FID, and KID below it, of a set to another; a synthetic set with itself has neither."""
        fid = self.results.fid
        if name == other and other not in fid.fid[name]:
            return ""
        kid, std = (part.get(name, {}).get(other) for part in (fid.kid, fid.kid_std))
        small = "" if kid is None or std is None else f"{fixed(1000 * kid, 1)} \u00b1 {fixed(1000 * std, 1)}"
        return _below(fixed(fid.fid[name].get(other), 2), small)

    def captioned(self, one: kinds.Caption) -> Picture | None:
        """The picture of a caption, if it is there."""
        file, folder = Path("pictures", one.file), self.folder / "pictures"
        if Path(one.file).name != one.file:
            raise ValueError(f"captions.json names '{one.file}'; expected a file of '{folder}' itself, e.g. 'x.png'.")
        return self.picture(file) if (self.folder / file).is_file() else None

    def weighed(self, name: str, found: kinds.Weights) -> list[tuple[str, Picture]]:
        """The pictures of a fusion weight each, those that are there."""
        files = [(w.weight, Path("pictures", f"weights_{name}", w.picture)) for w in found.table if w.picture]
        return [(f"Weight {w or 0:g}", self.picture(file)) for w, file in files if (self.folder / file).is_file()]

    def picture(self, file: Path) -> Picture:
        """A PNG file of the run."""
        data = (self.folder / file).read_bytes()
        if len(data) < 24 or not data.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"'{self.folder / file}' is not a PNG picture. Write the pictures again.")
        within(self.folder, file)
        width, height = struct.unpack(">II", data[16:24])
        kind, least = ("small", width) if width <= SHEET else ("large", SHEET)
        return Picture(base64.b64encode(data).decode(), width, height, kind, least)

    def charts(self, uncertainties: kinds.Uncertainties) -> dict[str, Any]:
        """The three charts, empty where there is nothing to draw, and what their captions say."""
        r = self.results
        rising = sorted(r.scores, key=r.scores.__getitem__)
        rows = [(self.name(key), r.scores[key], r.segmentation[key].ci95) for key in rising]
        gap = [r.scores[key] for key in (LOWER, UPPER)] if {LOWER, UPPER} <= r.scores.keys() else []
        sets = {self.name(key): uncertainties[key] for key in ordered(uncertainties, SETS) if uncertainties[key]}
        aim = uncertainties.get("unlabeled")
        mean, curves = sum(aim) / len(aim) if aim else None, {}
        for key in ordered(r.control, ("control",)):
            points = [
                (p.requested, p.measured_mean, p.measured_std or 0.0)
                for p in r.control[key].curve
                if p.requested is not None and p.measured_mean is not None
            ]
            curves |= {self.name(key): sorted(points)} if points else {}
        return {
            "scores": figures.dots(rows, self.name(self.main), gap) if rows else "",
            "intervals": any(interval for _, _, interval in rows),
            "uncertainty": figures.histograms(sets, mean) if sets else "",
            "aim": mean,
            "control": figures.curve(curves) if curves else "",
            "curves": list(curves),
        }


def _load(folder: Path, name: str, kind: Any) -> Any:
    """A JSON file of the run as a type; empty where there is none."""
    path = within(folder, name)
    return read(path, kind) if path.is_file() else kind()


def _at(values: list[float | None], i: int) -> float | None:
    return values[i] if i < len(values) else None


def _between(ends: tuple[float, float] | None) -> str:
    return " to ".join(map(percent, ends)) if ends else MISSING


def _below(text: str, small: str) -> Markup:
    return Markup("{}<br><small>{}</small>").format(text, small) if small else Markup("{}").format(text)
