"""Tables and single numbers in Markdown documents, written from committed results, so that no number is typed by hand.

    <!-- table: FILE... KIND                          kinds: `tables.TABLES`; several files: mean and spread over runs;
                                                      of one table.json: `benchmark_table.TABLES`
    rows: lower_bound = the labelled device; unicorn  some rows, in this order, called otherwise; all without this line
    columns: mean IoU; gap closed                     the same of columns; the first one always stays
    -->
    ... what is written ...
    <!-- /table -->

    <!-- text: FILE KIND -->                          lines of the benchmark's table: `benchmark_table.TEXTS`
    ... what is written ...
    <!-- /text -->

    ... closes <!-- value: FILE WHAT FORMAT -->82 %<!-- /value --> of the gap

FILE is a path from the document's folder. WHAT names an entry (``gap.unicorn+real.share``,
``weights.unicorn.table.0``), or a quotient A/B of two entries or of one and a number; FORMAT is Python's (``.3f``,
``.0%``, ``.7``). A pair, such as an interval, becomes "0.509 to 0.548". Markers inside code are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicorn_monai.report import benchmark_table
from unicorn_monai.report.tables import TABLES, Rows, markdown, read_runs, shown
from unicorn_monai.system.files import parse_json, write_text

_MARKER = re.compile(
    r"```.*?```|`[^`\n]*`"  # code
    r"|(?P<head><!-- (?P<what>table|text|value): (?P<order>(?:(?!-->|<!--).)*)-->)"
    r"(?:(?!<!-- ).)*(?P<tail><!-- /(?P=what) -->)"
    r"|<!-- /?(?:table|text|value)\b",  # one without the other
    re.DOTALL,
)


def write_documents(documents: Sequence[Path]) -> str:
    """Write the tables and values of documents, or none if one cannot be; returns which were changed, as lines."""
    texts = {document: filled(document) for document in documents}
    changed = [document for document, text in texts.items() if text != document.read_text(encoding="utf-8")]
    for document in changed:
        write_text(document, texts[document])
    return "\n".join(map(str, changed)) or "no document has changed"


def filled(document: Path) -> str:
    """A document with its tables and values as their files have them.

    Raises:
        ValueError: a marker without its counterpart, or one that names what is not there.
    """

    def fill(found: re.Match[str]) -> str:
        if found[0].startswith("`"):
            return found[0]
        if found["head"] is None:
            start = found.string[found.start() :][:60]
            raise ValueError(f"'{start}' has no counterpart; expected e.g. '<!-- /table -->'")
        if found["what"] == "value":
            return f"{found['head']}{_value(document.parent, found['order'])}{found['tail']}"
        write = _table if found["what"] == "table" else _text
        return f"{found['head']}\n\n{write(document.parent, found['order'])}\n\n{found['tail']}"

    try:
        return _MARKER.sub(fill, document.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"'{document}': {error}") from error


def _table(folder: Path, order: str) -> str:
    asked, *lines = order.strip().splitlines()
    *files, kind = asked.split()
    if kind not in {*TABLES, *benchmark_table.TABLES}:
        kinds = ", ".join([*TABLES, *benchmark_table.TABLES])
        raise ValueError(f"a table is of '{kind}'; expected FILE... and one of {kinds}.")
    if kind in TABLES:
        rows = TABLES[kind](read_runs([folder / file for file in files]))
    else:
        rows = benchmark_table.TABLES[kind](_benchmark(folder, files))
    for line in lines:
        what, _, names = line.partition(":")
        if what == "rows":
            rows = [rows[0], *_chosen(rows[1:], names)]
        elif what == "columns":
            first, *others = map(list, zip(*rows, strict=True))
            rows = list(map(list, zip(first, *_chosen(others, names), strict=True)))
        else:
            raise ValueError(f"a table has the line '{line}'; expected 'rows: ...' or 'columns: ...'.")
    if min(len(rows), len(rows[0])) < 2:
        raise ValueError(f"'{files}' have nothing for a table of {kind}; expected another kind.")
    return markdown(rows)


def _text(folder: Path, order: str) -> str:
    *files, kind = order.split() or [""]
    if kind not in benchmark_table.TEXTS:
        raise ValueError(f"a text is of '{kind}'; expected FILE and one of {', '.join(benchmark_table.TEXTS)}.")
    return benchmark_table.TEXTS[kind](_benchmark(folder, files))


def _benchmark(folder: Path, files: Sequence[str]) -> benchmark_table.Table:
    if len(files) != 1:
        raise ValueError(f"what the benchmark says is of the files {files}; expected one table.json.")
    return benchmark_table.read_table(folder / files[0])


def _chosen(rows: Rows, names: str) -> Rows:
    """Some rows, in another order, with other first cells."""
    by_name, chosen = {row[0]: row for row in rows}, []
    for name in filter(None, map(str.strip, names.split(";"))):
        key, _, text = map(str.strip, name.partition(" = "))
        if key not in by_name:
            raise ValueError(f"a table has no '{key}'; expected some of {', '.join(by_name)}.")
        chosen.append([text or key, *by_name[key][1:]])
    return chosen


def _value(folder: Path, order: str) -> str:
    words = order.split()
    if len(words) != 3:
        raise ValueError(f"a value is '{order.strip()}'; expected FILE WHAT FORMAT, without spaces in them.")
    file, what, form = words
    content = parse_json(folder / file)
    try:
        above, *below = [_entry(content, name) for name in what.split("/")]
        for divisor in below:
            above /= divisor
        return shown(above, form)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"'{what}' of '{file}' cannot be shown as '{form}' ({why}).") from error


def _entry(content: Any, name: str) -> Any:
    """An entry by its path; a number is itself."""
    if re.fullmatch(r"[0-9.]+", name):
        return float(name)
    for key in name.split("."):
        content = content[int(key)] if isinstance(content, list) else content[key]
    return content
