"""The report's page, its words and numbers as HTML: what is missing is called "not computed", all text is escaped.

Texts are escaped where files are read (`as_html`), names of entries too, whatever is expected in their place. So no
function here or in the report's sections can forget it, and none may do it again.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from unicorn_monai.system.terminal import LINES, printable

MISSING = '<span class="none">not computed</span>'
NAMES = {
    "lower_bound": "Lower bound",
    "upper_bound": "Upper bound",
    "augmentation": "Lower bound, augmented",
    "self_training": "Self-training",
    "cyclegan": "CycleGAN",
    "cut": "CUT",
    "semantic_only": "Label map only",
    "unicorn": "UnIACorN",
    "control": "UnIACorN",
    "labeled": "Labelled device",
    "unlabeled": "Unlabelled device",
}
SHEET = 960  # pixels; a wider sheet is scaled down to what is there, not below this
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{run}: UnIACorN report</title>
<style>
{style}</style>
</head>
<body>
<header><span>UnIACorN report</span><span>{run}</span></header>
<main>
{content}
</main>
</body>
</html>
"""


def page(run: str, content: str) -> str:
    """The whole file: everything it shows is inside, and its policy forbids the browser to load anything."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return PAGE.format(run=escape(run), style=style, content=content)


def section(title: str, content: str) -> str:
    """A card of the page."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def figure(content: str, caption: str, kind: str = "") -> str:
    """A chart or picture with what it shows below."""
    return f'<figure>{content}<figcaption class="{kind}">{caption}</figcaption></figure>'


def table(head: list[str], rows: dict[str, list[str]], best: int | None = None, summary: int | None = None) -> str:
    """A table whose first column heads the rows; ``best``: column to stress; ``summary``: first row of the summary."""
    mark = [' class="best"' if i == best else "" for i in range(len(head) - 1)]
    top = "".join(f'<th scope="col"{m}>{text}</th>' for m, text in zip(["", *mark], head, strict=True))
    body = ""
    for index, (text, cells) in enumerate(rows.items()):
        kind = "" if summary is None or index < summary else "first" if index == summary else "more"
        tds = "".join(f"<td{m}>{cell}</td>" for m, cell in zip(mark, cells, strict=True))
        body += f'<tr class="{kind}"><th scope="row">{text}</th>{tds}</tr>'
    wide = "" if summary is None else f' class="wide" style="--columns:{len(mark)}"'
    return f'<div class="scroll"><table{wide}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def name_of(key: str) -> str:
    """How a set-up, a set of images or a control experiment is called, from its key in ``results.json``."""
    base, *added = key.split("+")
    variant = base.removeprefix("unicorn_").removeprefix("control_")
    mode = f"{variant} mode" if not variant.startswith("round") else f"round {variant.removeprefix('round')}"
    known = NAMES.get(base) or (base if variant == base else f"UnIACorN, {mode}")
    return " + ".join([known, *added])


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def fixed(value: Any, digits: int) -> str:
    """A rounded number."""
    known = number(value)
    return MISSING if known is None else f"{known:.{digits}f}".replace("-", "\u2212")


def percent(share: float, sign: str = "-") -> str:
    """Whole percents; one digit more where rounding would claim none or all. ``sign``: "+" shows it always."""
    digits = 1 if round(100 * share) in (0, 100) and share not in (0, 1) else 0
    return f"{100 * share:{sign}.{digits}f}\u00a0%".replace("-", "\u2212")


def duration(value: Any) -> str:
    """Seconds in words."""
    seconds = number(value)
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def picture(run: Path, name: Path | str, title: str) -> str:
    """A PNG file of the run's folder as part of the page."""
    data = (run / name).read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"'{run / name}' is not a PNG picture. Write the pictures again.")
    within(run, name)
    width, height = struct.unpack(">II", data[16:24])
    least, kind = (width, "small") if width <= SHEET else (SHEET, "large")
    size = f'width="{width}" height="{height}" style="min-width:{least}px;max-width:{4 * width}px"'
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<div class="scroll"><img class="{kind}" src="{source}" alt="{title}" {size}></div>'


def within(run: Path, name: Path | str) -> Path:
    """A file of a run, which a report may take in.

    Raises:
        ValueError: a link leads out of the run's folder.
    """
    file = run / name
    if not file.resolve().is_relative_to(run.resolve()):
        raise ValueError(
            f"'{file}' lies at '{file.resolve()}', outside the run; a report takes in only what lies in the run's own "
            "folder. Put the file itself there, or remove the link."
        )
    return file


def as_html(value: Any) -> Any:
    """What a JSON file holds, every text in it escaped: the names of entries too, whatever else is expected there."""
    if isinstance(value, str):
        return escape(printable(value, LINES))
    if isinstance(value, dict):
        return {as_html(key): as_html(entry) for key, entry in value.items()}
    return [as_html(entry) for entry in value] if isinstance(value, list) else value


def told(value: Any) -> str:
    """A value as text."""
    return MISSING if value is None else str(value)


def nested(parent: dict[str, Any], key: str) -> dict[str, Any]:
    """A table within a table, empty where there is none."""
    found = parent.get(key)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"'{key}' is a {type(found).__name__}; expected a table of names and values.")
    return found or {}


def ordered(keys: Iterable[str], first: Sequence[str]) -> list[str]:
    """The keys, those of ``first`` first."""
    keys = list(keys)
    return [key for key in first if key in keys] + [key for key in keys if key not in first]


def absent_labels(results: dict[str, Any]) -> list[str]:
    """Labels of a run that have no pixel in its test images, by name."""
    scores = next(iter(nested(results, "segmentation").values()), None) or {}
    names = dict(enumerate(results.get("labels") or ()))
    return [str(names.get(value, value)) for value in scores.get("absent") or ()]
