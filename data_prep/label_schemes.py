"""Which label values there are, and what they are made of: named surfaces, or the values of label images.

    {"labels": {"0": "vitreous", "1": "retina", "2": "choroid"},         every value has a name
     "surfaces": ["ILM", "BM"],                                           the borders between them, top to bottom
     "values": {"128": 1, "255": 2},                                      value in a label image -> label
     "colours": {"0": [128, 64, 128], "255": [0, 0, 0]}}                  label -> its colour in colour label images

`--labels` takes such a file ("surfaces", "values" and "colours" are optional, and the table of
"labels" may stand alone), the name of a scheme below, or `none`. A label that "values" mentions on neither side, as 0
here, stays what it is.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.privacy import Refused
from unicorn_monai.data.label_checks import require_label_table
from unicorn_monai.data.layout import LABELS_EXAMPLE
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.system.intake import Untaken, lies_there, read_text

ENTRIES = ("labels", "surfaces", "values", "colours")


@dataclass(frozen=True)
class Scheme:
    """Names of the labels in order of their values; surfaces between them; what values and colours in files mean."""

    names: tuple[str, ...]
    surfaces: tuple[str, ...] | None = None
    values: tuple[tuple[int, int], ...] = ()
    colours: tuple[tuple[tuple[int, int, int], int], ...] = ()

    @property
    def labels(self) -> dict[int, str]:
        """Value -> name."""
        return dict(enumerate(self.names))

    def replace(self, label: NDArray) -> NDArray[np.uint8]:
        """A label image with its values replaced; 255 stays ignore unless it is given another meaning."""
        if label.ndim == 3 and self.colours:
            return self._from_colours(label)
        if label.ndim != 2:
            raise ValueError(
                f"label: found shape {label.shape}; expected one channel. Convert colours to values, or name them in a "
                '--labels file ("colours")'
            )
        table = self._table()
        present = np.unique(label)
        if unknown := [v for v in present.tolist() if v not in table]:
            few = f"{unknown[:8]}{' ...' if len(unknown) > 8 else ''}"
            own = next((v for v in unknown if v in self.labels), None)
            twice = (
                "" if own is None else f' "values" makes {own} of another value; add "{own}": {own} if both mean it;'
            )
            raise ValueError(
                f"label values: found {few}; expected {sorted(table)}. Name them in a --labels file, with "
                f'"values": {{"found": label}} where they differ;{twice} many values hint at a lossy or resampled '
                "label map"
            )
        out = np.empty(label.shape, dtype=np.uint8)
        for value in present.tolist():
            out[label == value] = table[value]
        return out

    def _table(self) -> dict[int, int]:
        """Value in a label image -> label. A label that "values" mentions on neither side stays what it is."""
        made = {label for _, label in self.values}
        return {v: v for v in (*self.labels, IGNORE_LABEL) if v not in made or v == IGNORE_LABEL} | dict(self.values)

    def _from_colours(self, label: NDArray) -> NDArray[np.uint8]:
        out = np.full(label.shape[:2], IGNORE_LABEL, dtype=np.uint8)
        known = np.zeros(label.shape[:2], dtype=bool)
        for colour, value in self.colours:
            match = (label == np.array(colour)).all(axis=2)
            out[match], known = value, known | match
        if not known.all():
            found = np.unique(label[~known], axis=0)
            few = f"{found[:4].tolist()}{' ...' if len(found) > 4 else ''}"
            raise ValueError(
                f"label colours: found {few}, which the labels do not name; many colours hint at a lossy or resampled "
                'label image. Name them in a --labels file ("colours"; value 255 for ignore)'
            )
        return out

    @property
    def palette(self) -> list[list[int]] | None:
        """Colour of each label, to be written into dataset.json; None unless all have one."""
        table = {value: list(colour) for colour, value in self.colours}
        return [table[v] for v in self.labels] if all(v in table for v in self.labels) else None

    def pick(self, surfaces: Mapping[str, NDArray]) -> NDArray | None:
        """The scheme's surfaces in order, (surfaces, columns), or None if one of them is not there.

        Surfaces without names ("1", "2", ...) are taken as they come.
        """
        if self.surfaces is None and list(surfaces) == [str(k) for k in range(1, len(self.names))]:
            return np.stack(list(surfaces.values()))
        if self.surfaces is None or any(name not in surfaces for name in self.surfaces):
            return None
        return np.stack([surfaces[name] for name in self.surfaces])


# Ten labels of the paper. In Heidelberg's files a layer's name means its lower border; EZ and IZ are the upper and the
# lower of PR1 and PR2. That IZ is the border of outer segments and pigment epithelium is our reading.
PAPER = Scheme(
    ("vitreous", "RNFL", "GCL+IPL", "INL", "OPL", "ONL", "IS", "OS", "RPE", "choroid and below"),
    ("ILM", "RNFL", "IPL", "INL", "OPL", "ELM", "EZ", "IZ", "BM"),
)
RETINA = Scheme(("vitreous", "retina", "choroid and below"), ("ILM", "BM"))
# Nine labels from the surfaces of Iowa's OCTExplorer, which draws no external limiting membrane; the border of myoid
# and ellipsoid is taken for the upper edge of the bright band, as in data_prep.spectralis_healthy (our reading).
OCTEXPLORER = Scheme(
    ("vitreous", "RNFL", "GCL+IPL", "INL", "OPL", "ONL+IS", "EZ", "OS/RPE", "choroid and below"),
    ("ILM", "RNFL-GCL", "IPL-INL", "INL-OPL", "OPL-HFL", "BMEIS", "IS/OSJ", "OB_RPE"),
)
# Street scenes, from cityscapesScripts (MIT): 34 ids in the files, 19 classes that count. A class's place in the table
# is its "train id", our label. Every other id (ego vehicle, static, caravan, ...) is ignored, 255.
CLASSES = (  # name, id, colour
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
TRAIN_IDS = Scheme(
    tuple(name for name, _, _ in CLASSES),
    colours=(*((colour, value) for value, (_, _, colour) in enumerate(CLASSES)), ((0, 0, 0), IGNORE_LABEL)),
)
_LABEL_OF = {id_: value for value, (_, id_, _) in enumerate(CLASSES)}
LABEL_IDS = replace(TRAIN_IDS, values=tuple((id_, _LABEL_OF.get(id_, IGNORE_LABEL)) for id_ in range(34)))
NAMED = {
    "paper": PAPER,
    "retina": RETINA,
    "octexplorer": OCTEXPLORER,
    "cityscapes": TRAIN_IDS,
    "cityscapes_ids": LABEL_IDS,
}


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON would take the last of two entries without a word."""
    if twice := sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1):
        raise Refused(f"--labels: the file has the entries {twice} twice; expected each once.")
    return dict(pairs)


def read_scheme(text: str | None) -> Scheme | None:
    """Scheme of a `--labels` value: a name or a JSON file; None where it is not given, or `none`."""
    if text is None or text == "none":
        return None
    if text in NAMED:
        return NAMED[text]
    path = Path(text)
    if not lies_there(path):
        raise ValueError(f"--labels '{text}' is neither a file nor one of {['none', *NAMED]}.")
    try:
        content = json.loads(read_text(path), object_pairs_hook=_each_once)
    except (Untaken, Refused):
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--labels: '{path}' is not valid JSON ({error}); expected {LABELS_EXAMPLE}.") from error
    if isinstance(content, dict) and "labels" not in content:
        content = {"labels": content}
    if not isinstance(content, dict) or not isinstance(content["labels"], dict) or not content["labels"]:
        raise ValueError(f"--labels: '{path}' holds no table of labels; expected {LABELS_EXAMPLE}.")
    if unknown := sorted(set(content) - {*ENTRIES}):
        raise ValueError(f"--labels: '{path}' has entries {unknown}; expected {str(ENTRIES)[1:-1]}.")
    labels, surfaces, values = content["labels"], content.get("surfaces"), content.get("values", {})
    require_label_table(labels, f"--labels: '{path}'")
    if surfaces is not None:
        if not (isinstance(surfaces, list) and all(isinstance(s, str) for s in surfaces)):
            raise ValueError(f"--labels: 'surfaces' of '{path}' is {surfaces!r}; expected a list of names.")
        if len(surfaces) != len(labels) - 1:
            expected = f"{len(labels) - 1}, one between two labels"
            raise ValueError(f"--labels: '{path}' has {len(surfaces)} surfaces; expected {expected}.")
    try:
        pairs = tuple((int(found), index(label)) for found, label in values.items())
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"--labels: 'values' of '{path}' is {values}; expected e.g. {{'128': 1}}.") from error
    if wrong := sorted({label for _, label in pairs} - set(range(len(labels))) - {IGNORE_LABEL}):
        raise ValueError(f"--labels: 'values' of '{path}' lead to {wrong}, which 'labels' does not name.")
    names = tuple(str(labels[str(k)]) for k in range(len(labels)))
    colours = _read_colours(content.get("colours", {}), len(labels), path)
    return Scheme(names, None if surfaces is None else tuple(surfaces), pairs, colours)


def _read_colours(table: object, n_labels: int, path: Path) -> tuple[tuple[tuple[int, int, int], int], ...]:
    """Colours of a --labels file: label -> [red, green, blue]."""
    allowed = {str(v) for v in (*range(n_labels), IGNORE_LABEL)}
    found: dict[tuple[int, int, int], int] = {}
    for value, colour in table.items() if isinstance(table, dict) else [("", table)]:
        three = isinstance(colour, list) and len(colour) == 3
        whole = three and all(isinstance(channel, int) and 0 <= channel < 256 for channel in colour)
        if value not in allowed or not whole or tuple(colour) in found:
            expected = "e.g. {'0': [128, 64, 128]}, each colour once, for a label or 255"
            raise ValueError(f"--labels: 'colours' of '{path}' has {value!r}: {colour!r}; expected {expected}.")
        found[tuple(colour)] = int(value)
    return tuple(found.items())
