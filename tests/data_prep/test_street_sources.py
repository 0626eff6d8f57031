"""Cityscapes, ACDC and folders of colour pictures: trees made here, with the layout and nothing of the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import acdc, cityscapes, rgb_folder
from data_prep.colour import cut
from data_prep.label_schemes import CLASSES, LABEL_IDS, TRAIN_IDS
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import SPLITS, label_names, read_header
from unicorn_monai.images.files import read_array

ROWS, COLUMNS = 64, 128
SAME = ("--size", str(ROWS), str(COLUMNS))
CITIES = ("aachen", "bochum", "lindau", "bonn")
IDS = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0, 4, 29, 255])
COLOURS = {str(k): list(colour) for k, (_, _, colour) in enumerate(CLASSES)}


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "keys" / "key"))


def photo(k: int, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """A picture that is neither symmetric nor square: brighter to the right, redder to the bottom."""
    image = np.empty((rows, columns, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(rows)[:, None] * 2, np.arange(columns)[None, :]
    image[..., 2] = 7 * k % 256
    return image


def ids(k: int, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """A map of label ids in vertical stripes."""
    return np.broadcast_to(IDS[(np.arange(columns) // 4 + k) % len(IDS)], (rows, columns)).astype(np.uint8)


def train_ids(label: np.ndarray) -> np.ndarray:
    table = np.full(256, 255, np.uint8)
    table[[id_ for _, id_, _ in CLASSES]] = np.arange(19)
    return table[label]


def save(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def make_cityscapes(root: Path, flat: bool = False, kind: str = "labelIds") -> Path:
    """Two cities to train, one to validate, one to test."""
    for split, cities in {"train": ["aachen", "bochum"], "val": ["lindau"], "test": ["bonn"]}.items():
        for city in cities:
            for k in range(2):
                place, stem = f"{split}/{'' if flat else city + '/'}", f"{city}_000000_{k:06d}"
                save(root / "leftImg8bit" / f"{place}{stem}_leftImg8bit.png", photo(2 * CITIES.index(city) + k))
                label = ids(k) if split != "test" else np.zeros((ROWS, COLUMNS), np.uint8)
                values = {"labelIds": label, "labelTrainIds": train_ids(label)}[kind]
                save(root / "gtFine" / f"{place}{stem}_gtFine_{kind}.png", values)
                save(root / "gtFine" / f"{place}{stem}_gtFine_instanceIds.png", label)
    return root


def make_acdc(root: Path, flat: bool = False, kind: str = "labelTrainIds") -> Path:
    """Two sequences to train and one to validate for every weather, with clear-weather twins of other colours."""
    for n, weather in enumerate(acdc.WEATHERS):
        for split, sequences in {"train": (0, 1), "val": (2,)}.items():
            for sequence in sequences:
                name = f"GOPR{100 * n + sequence:04d}"
                for k in range(2):
                    place = f"{split}/" if flat else f"{weather}/{split}/{name}/"
                    stem = f"{name}_frame_{k:06d}"
                    save(root / "rgb_anon" / f"{place}{stem}_rgb_anon.png", photo(8 * n + 2 * sequence + k))
                    label = ids(k)
                    values = {"labelIds": label, "labelTrainIds": train_ids(label)}[kind]
                    save(root / "gt" / f"{place}{stem}_gt_{kind}.png", values)
                    if not flat:
                        twin = root / "rgb_anon" / f"{weather}/{split}_ref/{name}/{stem}_rgb_ref_anon.png"
                        save(twin, np.full((ROWS, COLUMNS, 3), 255, np.uint8))
    return root


def run(module, root: Path, output: Path, *options: str) -> list[dict]:
    split = () if "--split" in options else ("--split", "0.5", "0.5", "0")
    assert module.main([str(root), str(output), *SAME, *split, *options]) == 0
    return datalist(output, [s for s in SPLITS if read_header(output)[s]])


def refused(module, root: Path, output: Path, *options: str) -> str:
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        assert module.main([str(root), str(output), *options]) == 1
    return text.getvalue()


# ---------------------------------------------------------------- labels


def test_the_table_of_ids_is_that_of_cityscapes():
    assert (LABEL_IDS.replace(ids(0)) == train_ids(ids(0))).all()
    assert (TRAIN_IDS.replace(train_ids(ids(0))) == train_ids(ids(0))).all()
    assert TRAIN_IDS.palette == [list(colour) for _, _, colour in CLASSES]
    with pytest.raises(ValueError, match=r"label values: found \[34\]"):
        LABEL_IDS.replace(np.full((2, 2), 34, np.uint8))
    with pytest.raises(ValueError, match=r"label values: found \[19\]"):
        TRAIN_IDS.replace(np.full((2, 2), 19, np.uint8))


def test_colours_become_labels_or_are_refused():
    colours = np.array([[(128, 64, 128), (0, 0, 142)], [(70, 130, 180), (0, 0, 0)]], np.uint8)
    assert TRAIN_IDS.replace(colours).tolist() == [[0, 13], [10, 255]]
    colours[0, 0] = (129, 64, 128)
    with pytest.raises(ValueError, match=r"label colours: found \[\[129, 64, 128\]\]"):
        TRAIN_IDS.replace(colours)


# ---------------------------------------------------------------- Cityscapes


@pytest.mark.parametrize("flat", [False, True], ids=["official", "flattened"])
@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(flat, kind, tmp_path, capsys):
    items = run(cityscapes, make_cityscapes(tmp_path / "in", flat, kind), tmp_path / "out")
    assert "the official test split has no public labels" in capsys.readouterr().out
    header = read_header(tmp_path / "out")
    assert [len(header[s]) for s in SPLITS] == [2, 2, 2]
    assert {item["subject"] for item in header["test"]} == {"lindau"}
    assert (header["modality"], header["device"], len(label_names(tmp_path / "out"))) == ("RGB", "Cityscapes", 19)
    assert header["colours"][10] == [70, 130, 180]
    for item in items:
        k = int(item["frame"][-6:])
        np.testing.assert_array_equal(
            read_array(item["image"]), photo(2 * CITIES.index(item["subject"]) + k)
        )  # not transposed
        np.testing.assert_array_equal(read_array(item["label"]), train_ids(ids(k)))
        assert item["sub_domain"] == "clear"


def test_a_picture_without_labels_is_left_out_and_told(tmp_path, capsys):
    root = make_cityscapes(tmp_path / "in")
    (root / "gtFine/train/aachen/aachen_000000_000001_gtFine_labelIds.png").unlink()
    items = run(cityscapes, root, tmp_path / "out")
    assert len(items) == 5
    assert "aachen_000000_000001_leftImg8bit.png: label: found neither of" in capsys.readouterr().out
    assert len(run(cityscapes, root, tmp_path / "bare", "--labels", "none")) == 6
    assert label_names(tmp_path / "bare") == []


# ---------------------------------------------------------------- ACDC


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_acdc_keeps_the_weather_and_never_reads_the_twins(kind, tmp_path):
    items = run(acdc, make_acdc(tmp_path / "in", kind=kind), tmp_path / "out")
    header = read_header(tmp_path / "out")
    assert [len(header[s]) for s in SPLITS] == [8, 8, 8]
    assert {item["sub_domain"] for item in header["test"]} == set(acdc.WEATHERS)
    for item in items:
        k = int(item["frame"][-6:])
        n, sequence = acdc.WEATHERS.index(item["sub_domain"]), int(item["subject"][-2:])
        np.testing.assert_array_equal(read_array(item["image"]), photo(8 * n + 2 * sequence + k))
        np.testing.assert_array_equal(read_array(item["label"]), train_ids(ids(k)))


def test_a_flattened_acdc_has_lost_the_weather_unless_a_table_names_it(tmp_path, capsys):
    root = make_acdc(tmp_path / "in", flat=True)
    items = run(acdc, root, tmp_path / "out")
    assert "flattened copy: the weather is lost" in capsys.readouterr().out
    assert not any("sub_domain" in item for item in items)
    table = {w: [f"GOPR{100 * n + k:04d}" for k in range(3)] for n, w in enumerate(acdc.WEATHERS)}
    (tmp_path / "weather.json").write_text(json.dumps(table))
    options = ("--weather-of", str(tmp_path / "weather.json"))
    assert {item["sub_domain"] for item in run(acdc, root, tmp_path / "all", *options)} == set(acdc.WEATHERS)
    some = run(acdc, root, tmp_path / "fog", *options, "--weather", "fog")
    assert {item["sub_domain"] for item in some} == {"fog"}


def test_an_empty_weather_folder_is_refused_by_name(tmp_path):
    root = make_acdc(tmp_path / "in")
    for path in (root / "rgb_anon" / "snow").rglob("*_rgb_anon.png"):
        path.unlink()  # the twins stay
    text = refused(acdc, root, tmp_path / "out", *SAME)
    assert "snow' holds no _rgb_anon.png in train or val" in text
    assert "--weather fog night rain" in text
    items = run(acdc, root, tmp_path / "out", "--weather", "fog", "night", "rain")
    assert len(items) == 18


# ---------------------------------------------------------------- folders of pictures


def test_label_images_in_colours_and_sub_domains(tmp_path):
    for k, weather in enumerate(("dry", "wet")):
        for d, drive in enumerate("ab"):
            save(tmp_path / f"in/images/{weather}/{drive}/0.png", photo(2 * k + d))
            colours = np.array([COLOURS[str(v)] if v < 19 else [0, 0, 0] for v in train_ids(ids(k))[0]], np.uint8)
            save(tmp_path / f"in/labels/{weather}/{drive}/0.png", np.repeat(colours[None], ROWS, axis=0))
    names = {str(k): name for k, (name, _, _) in enumerate(CLASSES)}
    scheme = {"labels": names, "colours": COLOURS | {"255": [0, 0, 0]}}
    (tmp_path / "labels.json").write_text(json.dumps(scheme))
    options = ("--labels", str(tmp_path / "labels.json"), "--sub-domains")
    items = run(rgb_folder, tmp_path / "in", tmp_path / "out", *options)
    assert len(items) == 4
    for item in items:
        k = ("dry", "wet").index(item["sub_domain"])
        np.testing.assert_array_equal(read_array(item["image"])[..., :2], photo(k)[..., :2])
        np.testing.assert_array_equal(read_array(item["label"]), train_ids(ids(k)))
    assert read_header(tmp_path / "out")["colours"] == list(COLOURS.values())


@pytest.mark.parametrize("order", ["as the labels", "as they come"])
def test_palette_images_are_read_by_their_colours(order, tmp_path):
    for k in range(2):
        save(tmp_path / f"in/images/d{k}/0.png", photo(k))
        wanted = train_ids(ids(k))
        table = [*COLOURS.values(), [0, 0, 0]]
        index = np.where(wanted == 255, 19, wanted)
        if order == "as they come":  # index i stands for the label 19 - i
            table, index = table[::-1], 19 - index
        picture = Image.fromarray(index.astype(np.uint8), "P")
        picture.putpalette(np.array(table, np.uint8).tobytes())
        path = tmp_path / f"in/labels/d{k}/0.png"
        path.parent.mkdir(parents=True)
        picture.save(path)
    for item in run(rgb_folder, tmp_path / "in", tmp_path / "out", "--labels", "cityscapes"):
        k = read_array(item["image"])[0, 0, 2] // 7
        np.testing.assert_array_equal(read_array(item["label"]), train_ids(ids(k)))


def test_pictures_turned_by_their_exif_orientation_come_out_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    for k in range(2):
        stored = np.rot90(photo(k))
        save(tmp_path / f"in/drive{k}/0.png", np.ascontiguousarray(stored), exif=exif)
    items = run(rgb_folder, tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(read_array(items[0]["image"])[..., :2], photo(0)[..., :2])


def test_pictures_are_cut_to_the_ratio_of_sides_and_not_squeezed(tmp_path):
    assert cut(np.zeros((1080, 1920, 3)), (512, 1024)).shape == (960, 1920, 3)
    assert cut(np.zeros((1024, 2048)), (512, 512)).shape == (1024, 1024)
    for k in range(2):
        save(tmp_path / f"in/drive{k}/0.png", photo(k, 96, 128))
    items = run(rgb_folder, tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(read_array(items[0]["image"])[..., 0], photo(0, 96, 128)[16:80, :, 0])
    squeezed = run(rgb_folder, tmp_path / "in", tmp_path / "squeezed", "--squeeze")
    assert read_array(squeezed[0]["image"])[-1, 0, 0] > 180


def folder(root: Path, **changes) -> Path:
    """Two good pictures with label images of train ids; single files replaced."""
    files = {f"images/d{k}/{k}.png": photo(k) for k in range(3)}
    files |= {f"labels/d{k}/{k}.png": train_ids(ids(k)) for k in range(3)}
    for name, array in (files | changes).items():
        save(root / name, array)
    return root


SKIPPED = {
    "grey picture": ({"images/d0/0.png": photo(0)[..., 0]}, "image: found mode 'L'; expected colours of 8 bits"),
    "label of another size": (
        {"labels/d0/0.png": ids(0)[:32]},
        "label: found shape (32, 128); expected that of the image",
    ),
    "label id outside the map": ({"labels/d0/0.png": np.full((64, 128), 77, np.uint8)}, "label values: found [77]"),
    "unknown colour": ({"labels/d0/0.png": photo(0)}, "label colours: found [[0, 0, 0]"),
    "constant picture": ({"images/d0/0.png": np.zeros((64, 128, 3), np.uint8)}, "found a constant image"),
    "transparent picture": ({"images/d0/0.png": np.full((64, 128, 4), 9, np.uint8)}, "image: found transparent pixels"),
}


@pytest.mark.parametrize(("changes", "message"), SKIPPED.values(), ids=SKIPPED.keys())
def test_a_bad_picture_is_left_out_by_name(changes, message, tmp_path, capsys):
    root = folder(tmp_path / "in", **changes)
    labels = "cityscapes" if "colour" not in message else four_colours(tmp_path)
    items = run(rgb_folder, root, tmp_path / "out", "--labels", labels)
    assert len(items) == 2
    out = capsys.readouterr().out
    assert message.split("[[")[0] in out
    assert "skipped" in out


def four_colours(root: Path) -> str:
    names = {str(k): name for k, (name, _, _) in enumerate(CLASSES)}
    (root / "c.json").write_text(json.dumps({"labels": names, "colours": {"0": [1, 2, 3]}}))
    return str(root / "c.json")


REFUSED = {
    "size no multiple of 64": (("--size", "540", "960"), "--size (540, 960): 540 is no multiple of 64"),
    "labels without a table": (("--size", "64", "128"), "holds label images; say with --labels FILE"),
    "colour out of range": (("--labels", "{bad}", *SAME), "'colours' of"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_options_are_refused(options, message, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps({"labels": {"0": "a"}, "colours": {"0": [300, 0, 0]}}))
    given = [str(tmp_path / "bad.json") if option == "{bad}" else option for option in options]
    assert message in refused(rgb_folder, folder(tmp_path / "in"), tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "message"), [(cityscapes, "no folder leftImg8bit"), (acdc, "no folder rgb_anon")], ids=["cs", "acdc"]
)
def test_another_folder_is_refused(module, message, tmp_path):
    (tmp_path / "in").mkdir()
    assert message in refused(module, tmp_path / "in", tmp_path / "out", *SAME)


def test_the_official_test_split_cannot_be_asked_for(tmp_path):
    root = make_cityscapes(tmp_path / "in")
    assert "expected 0 as the third share" in refused(
        cityscapes, root, tmp_path / "out", "--split", "0.8", "0.1", "0.1"
    )


def test_a_lossy_label_image_is_refused(tmp_path, capsys):
    root = folder(tmp_path / "in")
    (root / "labels/d0/0.png").unlink()
    save(root / "labels/d0/0.jpg", ids(0))
    assert len(run(rgb_folder, root, tmp_path / "out", "--labels", "cityscapes")) == 2
    assert "is lossy (JPEG)" in capsys.readouterr().out
