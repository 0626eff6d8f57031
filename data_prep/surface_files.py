"""Surfaces drawn elsewhere: text tables, MATLAB files, and the XML of Iowa's OCTExplorer.

    .csv .txt    one line per A-scan, one column per surface from top to bottom, names in the first line if any
    .mat         (surfaces, A-scans), or (surfaces, A-scans, B-scans) for a whole volume
    .xml         surface / bscan / y; a whole volume, with a region that was left undefined

Rows are pixels from the top. MATLAB counts them from 1, everything here from 0: `first_row` is subtracted. Missing
values (NaN, empty, 3.4e38) stay missing.
"""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.grey import INVALID
from unicorn_monai.images.isolated import Unreadable, read_isolated
from unicorn_monai.system.intake import read_text, require_parsable, require_regular, require_unpackable

MOST_SURFACES = 1000  # columns of a table; a line of millions would take minutes to split
CELL_GROWTH = 200  # bytes in memory per byte of a table, whose cells may be of one letter
KINDS = (".csv", ".txt", ".mat", ".xml")


def read_surfaces(
    path: Path, columns: int | None, first_row: float | None, variable: str | None = None
) -> dict[str, NDArray]:
    """Name -> rows, (A-scans,) or (B-scans, A-scans); 0-based, NaN where missing; names "1", "2", ... if none.

    The columns are the A-scans of the image, which tell the axes of a .mat apart, as its variable does where there are
    several. The first row is number 1 in .mat files and 0 elsewhere, unless it is given.
    """
    kind = path.suffix.lower()
    if kind == ".mat":
        surfaces = _read_mat(path, columns, variable)
    else:
        surfaces = _read_iowa(path) if kind == ".xml" else _read_text(path)
    first = first_row if first_row is not None else 1.0 if kind == ".mat" else 0.0
    result = {name: np.where(np.abs(rows) >= INVALID, np.nan, rows) - first for name, rows in surfaces.items()}
    if all(np.isnan(rows).all() for rows in result.values()):
        raise ValueError(f"surfaces: found no row in '{path.name}'; expected numbers, one column per surface")
    return result


def _read_text(path: Path) -> dict[str, NDArray]:
    try:
        lines = [line for line in read_text(path, "utf-8-sig", growth=CELL_GROWTH).splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"surfaces: '{path.name}' is not text; expected one line per A-scan") from error
    if not lines:
        raise ValueError(f"surfaces: '{path.name}' is empty; expected one line per A-scan")
    separator = next((mark for mark in ("\t", ";", ",") if mark in lines[0]), None)
    if (most := max(line.count(separator or " ") for line in lines)) >= MOST_SURFACES:
        raise ValueError(f"surfaces: '{path.name}' has a line of {most + 1} values; expected one for each surface")
    table = [[cell.strip() for cell in line.split(separator)] for line in lines]
    names = None if all(map(_is_number, table[0])) else table.pop(0)
    widths = {len(row) for row in table}
    if len(widths) != 1:
        raise ValueError(f"surfaces: '{path.name}' has lines of {sorted(widths)} values; expected one per surface")
    if wrong := [k + 1 for row in table for k, cell in enumerate(row) if not _is_number(cell)]:
        raise ValueError(f"surfaces: '{path.name}' holds what is no number in column {wrong[0]}; decimals need a point")
    rows = np.array([[float(cell or "nan") for cell in row] for row in table]).T
    names = names or [str(k + 1) for k in range(len(rows))]
    if len(names) != len(rows) or len(set(names)) < len(names):
        raise ValueError(f"surfaces: '{path.name}' names {names} for {len(rows)} columns; expected one name for each")
    return dict(zip(names, rows, strict=True))


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def load_mat(path: Path) -> dict[str, NDArray]:
    """Numerical variables of a MATLAB file (up to version 7; newer ones are HDF5 and have to be saved with -v7)."""
    try:
        size = read_isolated("size of mat", path, require_regular(path).stat().st_size)["unpacked"]
        require_unpackable(size, f"'{path.name}'")
        return read_isolated("mat", path, size + path.stat().st_size)["arrays"]
    except Unreadable as error:
        raise ValueError(f"'{path.name}' cannot be read ({error}); expected a MATLAB file, saved with -v7") from error


def _read_mat(path: Path, columns: int | None, variable: str | None) -> dict[str, NDArray]:
    arrays = load_mat(path)
    if variable is None:
        shapes = {name: array.shape for name, array in arrays.items()}
        fitting = [k for k, shape in shapes.items() if len(shape) in (2, 3) and (columns is None or columns in shape)]
        if len(fitting) != 1:
            raise ValueError(f"surfaces: '{path.name}' holds {shapes}; say which variable with --mat-surfaces")
        variable = fitting[0]
    if variable not in arrays:
        raise ValueError(f"surfaces: '{path.name}' has no variable '{variable}', it has {sorted(arrays)}")
    rows = arrays[variable].astype(np.float64)
    if rows.ndim == 2 and columns is not None and rows.shape[1] != columns and rows.shape[0] == columns:
        rows = rows.T
    if rows.ndim not in (2, 3) or (columns is not None and rows.shape[1] != columns):
        raise ValueError(
            f"surfaces: '{variable}' of '{path.name}' has shape {rows.shape}; expected (surfaces, {columns}) or "
            f"(surfaces, {columns}, B-scans)"
        )
    if rows.ndim == 3:
        rows = rows.transpose(0, 2, 1)
    return {str(k + 1): part for k, part in enumerate(rows)}


def _read_iowa(path: Path) -> dict[str, NDArray]:
    try:
        root = ElementTree.parse(require_parsable(path)).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"surfaces: '{path.name}' is no XML ({error}); export it anew") from error
    if root.tag != "surfaces" or root.find("./surface") is None:
        raise ValueError(f"surfaces: '{path.name}' holds <{root.tag}>; expected <surfaces> of OCTExplorer")
    try:
        width, depth = (int(root.findtext(f"./surface_size/{axis}", "")) for axis in "xz")
        surfaces = {}
        for surface in root.findall("./surface"):
            rows = [[float(y.text or "nan") for y in bscan.findall("./y")] for bscan in surface.findall("./bscan")]
            name = surface.findtext("./name", "").strip()
            brackets = re.search(r"\(([^()]*)\)$", name)  # the last hold the short name: "ILM" of "ILM (ILM)"
            short = brackets[1] if brackets else name or surface.findtext("./label", "").strip()
            surfaces[short] = np.array(rows, dtype=np.float64)
        for ascan in root.findall("./undefined_region/ascan"):
            x, z = (int(ascan.findtext(f"./{axis}", "")) for axis in "xz")
            for rows in surfaces.values():
                rows[z, x] = np.nan
    except (ValueError, IndexError) as error:
        found = "what is no number, or a place outside"
        raise ValueError(f"surfaces: '{path.name}' is damaged: found {found}; export it anew") from error
    if wrong := {name: rows.shape for name, rows in surfaces.items() if rows.shape != (depth, width)}:
        raise ValueError(f"surfaces: '{path.name}' holds {wrong}; expected {(depth, width)} as it states")
    return surfaces
