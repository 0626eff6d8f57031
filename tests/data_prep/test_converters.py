"""Limit cases of the converters: surfaces and label maps, real Spectralis B-scans, the simulated home device."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import compare_simulation, home_oct, phantom, spectralis_healthy
from data_prep.splits import split_by_subject
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import SPLITS, read_header
from unicorn_monai.images.files import read_array
from unicorn_monai.images.surfaces import (
    area_weights,
    label_map,
    order_surfaces,
    resize_image,
    resize_surfaces,
    surfaces_from_labels,
)

REAL = Path(os.environ.get("UNICORN_DATA", Path(__file__).parents[3] / "shared" / "data")) / "spectralis_healthy"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"real B-scans not found in {REAL}; set UNICORN_DATA")


# Surfaces and label maps


def test_label_is_the_number_of_surfaces_at_or_above():
    labels = label_map(np.array([[1.0, 0.2], [2.5, 0.2]]), 4)
    assert labels[:, 0].tolist() == [0, 1, 1, 2]
    assert labels[:, 1].tolist() == [0, 2, 2, 2]


def test_missing_columns_are_ignored():
    surfaces = np.array([[1.0, np.nan, 1.0], [2.0, 2.0, 2.0]])
    labels = label_map(surfaces, 4)
    assert (labels[:, 1] == 255).all()
    assert (labels[:, [0, 2]] != 255).all()
    assert np.isnan(surfaces_from_labels(labels, 2)[:, 1]).all()
    assert np.isnan(resize_surfaces(surfaces, (4, 3), (4, 3))[0]).tolist() == [False, True, False]
    assert np.isnan(resize_surfaces(surfaces, (4, 3), (4, 2))[0]).all()  # both new columns contain a part of it


def test_crossing_surfaces_are_repaired_and_counted():
    surfaces = np.tile(np.array([[1.0], [3.0], [5.0]]), (1, 10))
    surfaces[1, 4] = 0.5
    ordered, share = order_surfaces(surfaces)
    assert share == pytest.approx(0.1)
    assert ordered[:, 4].tolist() == [1.0, 1.0, 5.0]
    assert surfaces[1, 4] == 0.5  # the input is not touched
    with pytest.raises(ValueError, match=r"cross in 100\.0%"):
        order_surfaces(surfaces[::-1])
    with pytest.raises(ValueError, match="cross"):
        label_map(surfaces, 8)
    with pytest.raises(ValueError, match="expected \\(surfaces, columns\\)"):
        order_surfaces(surfaces[0])


def test_surfaces_of_a_label_map_make_the_same_label_map():
    rng = np.random.default_rng(0)
    surfaces = np.sort(rng.uniform(0, 40, (8, 30)), axis=0)
    labels = label_map(surfaces, 41)
    found = surfaces_from_labels(labels, 8)
    assert np.abs(found - surfaces).max() <= 0.5
    assert (label_map(found, 41) == labels).all()
    batch = surfaces_from_labels(np.stack([labels, labels[::-1]]), 8)
    assert batch.shape == (2, 8, 30)
    assert (batch[0] == found).all()
    with pytest.raises(ValueError, match="label 8 with 3 surfaces"):
        surfaces_from_labels(labels, 3)


def test_surfaces_outside_the_image_stop_at_its_border():
    labels = label_map(np.array([[-7.0], [90.0]]), 10)
    assert (labels == 1).all()
    assert surfaces_from_labels(labels, 2).ravel().tolist() == [-0.5, 9.5]


def test_rescaling_keeps_edges_where_the_image_has_them():
    # An edge between rows 7 and 8 of 16 lies at 7.5; it stays in the middle whatever the size.
    image = np.repeat(np.array([[0], [200]], np.uint8), 8, axis=0).repeat(6, axis=1)
    for rows in (4, 8, 16, 32):
        z = resize_surfaces(np.full((1, 6), 7.5), (16, 6), (rows, 3))
        assert z == pytest.approx(rows / 2 - 0.5)
        small = resize_image(image, (rows, 3))
        assert ((small > 100) == label_map(z, rows).astype(bool)).all()
    with pytest.raises(ValueError, match="6 columns for an image with 5"):
        resize_surfaces(np.full((1, 6), 7.5), (16, 5), (8, 5))


@pytest.mark.parametrize(("source", "target"), [(7, 3), (3, 7), (610, 256), (64, 64)])
def test_area_weights_average(source, target):
    weights = area_weights(source, target)
    assert weights.sum(axis=1) == pytest.approx(1.0)
    assert weights.sum(axis=0) == pytest.approx(target / source)
    assert source != target or (weights == np.eye(source)).all()


# Phantom data sets


def test_split_shares_no_subject():
    names = [f"s{i}" for i in range(10)]
    parts = split_by_subject(names, (0.7, 0.1, 0.2), 0)
    assert [list(parts.values()).count(s) for s in SPLITS] == [7, 1, 2]
    assert parts == split_by_subject(names, (0.7, 0.1, 0.2), 0)
    assert parts != split_by_subject(names, (0.7, 0.1, 0.2), 1)
    assert set(split_by_subject(names[:3], (0.98, 0.01, 0.01), 0).values()) == set(SPLITS)
    assert set(split_by_subject(names[:1], (1, 0, 0), 0).values()) == {"training"}
    with pytest.raises(ValueError, match="2 subjects cannot fill 3 splits"):
        split_by_subject(names[:2], (0.7, 0.1, 0.2), 0)
    with pytest.raises(ValueError, match="three shares"):
        split_by_subject(names, (0.7, 0.3), 0)


@pytest.mark.parametrize("n", range(3, 30))
def test_every_split_gets_a_subject(n):
    parts = split_by_subject([str(i) for i in range(n)], (0.7, 0.1, 0.2), 0)
    assert len(parts) == n
    assert set(parts.values()) == set(SPLITS)


def test_phantom_is_a_clean_data_set(tmp_path):
    folder = phantom.write_phantom(tmp_path / "a", "spectralis", 5, 2, size=64, seed=3)
    assert check(folder, need_labels=True) == []
    header = read_header(folder)
    assert header["spacing_mm"] == pytest.approx([0.660 / 64, 5.0 / 64])
    assert header["simulated_device"] is True
    assert len(header["labels"]) == 10
    again = phantom.write_phantom(tmp_path / "b", "spectralis", 5, 2, size=64, seed=3)
    for split in SPLITS:
        for one, two in zip(datalist(folder, split), datalist(again, split), strict=True):
            assert (read_array(one["image"]) == read_array(two["image"])).all()


def test_devices_see_other_people_unless_told_otherwise(tmp_path):
    bare = phantom.Exam(labels=False, first_subject=0)
    sets = {
        "a": phantom.write_phantom(tmp_path / "a", "spectralis", 3, 1, size=32),
        "b": phantom.write_phantom(tmp_path / "b", "home_oct", 3, 1, size=32),
        "c": phantom.write_phantom(tmp_path / "c", "home_oct", 3, 1, size=32, exam=bare),
    }
    subjects = {k: {i["subject"] for i in datalist(v, SPLITS)} for k, v in sets.items()}
    assert not subjects["a"] & subjects["b"]
    assert subjects["a"] == subjects["c"]
    assert all("label" not in item for item in datalist(sets["c"], SPLITS))


def test_full_phantom_keeps_the_spacing_of_each_scan(tmp_path):
    folder = phantom.write_phantom(tmp_path / "a", "home_oct", 3, 1, size=64, exam=phantom.Exam("full"))
    spacings = {tuple(item["spacing_mm"]) for item in datalist(folder, SPLITS)}
    assert len(spacings) == 3
    assert all(1.0 <= axial * 64 <= 1.4 and 4.0 <= lateral * 64 <= 5.0 for axial, lateral in spacings)


def test_phantom_refuses_nonsense(tmp_path, capsys):
    with pytest.raises(ValueError, match="Unknown device 'cirrus'"):
        phantom.write_phantom(tmp_path / "a", "cirrus", 3, 1)
    with pytest.raises(ValueError, match="Unknown preset"):
        phantom.write_phantom(tmp_path / "a", "spectralis", 3, 1, exam=phantom.Exam("tiny"))
    with pytest.raises(ValueError, match="at least 1"):
        phantom.write_phantom(tmp_path / "a", "spectralis", 0, 1)
    assert phantom.main([str(tmp_path / "a"), "--subjects", "2"]) == 1
    assert "2 subjects cannot fill" in capsys.readouterr().err
    assert phantom.main([str(tmp_path / "a"), "--subjects", "3", "--scans-per-subject", "1", "--size", "32"]) == 0


# Spectralis: a folder in the layout of the real one, with edges at known places


def fake_source(folder: Path, subjects: int = 3, scans: int = 2, rows: int = 96, columns: int = 48) -> Path:
    """Write B-scans whose grey level is 20 * label, traced 1-based where the grey level changes."""
    for name in ("images", "boundaries"):
        (folder / name).mkdir(parents=True)
    for s in range(1, subjects + 1):
        edges = np.arange(8) * 8.0 + 18 + 2 * s  # 0-based row of the first pixel below each surface
        for k, edge in enumerate(edges, start=1):
            traced = np.full((columns, scans), edge + 1.0)
            np.savetxt(folder / "boundaries" / f"Subject{s}_{k}.txt", traced, delimiter=",")
        image = (np.arange(rows)[:, None] >= edges).sum(axis=1).astype(np.uint8) * 20
        for k in range(1, scans + 1):
            picture = Image.fromarray(np.repeat(image[:, None], columns, axis=1))
            picture.save(folder / "images" / f"Subject{s}_{k:02d}.png")
    return folder


def test_rows_are_counted_from_one(tmp_path):
    source = fake_source(tmp_path / "source")
    bscan = next(spectralis_healthy.read_bscans(source, 1))
    # With the shift the label changes exactly where the grey level does; without it one row too low.
    assert (label_map(bscan.surfaces, 96) == bscan.image // 20).all()
    assert (label_map(bscan.surfaces + 1, 96) != bscan.image // 20).any()


def test_spectralis_data_set(tmp_path, capsys):
    source = fake_source(tmp_path / "source")
    arguments = [
        str(source),
        str(tmp_path / "a"),
        "--size",
        "48",
        "--training",
        "1",
        "--validation",
        "3",
        "--test",
        "2",
    ]
    assert spectralis_healthy.main(arguments) == 0
    assert "0.00%" in capsys.readouterr().out
    assert check(tmp_path / "a", need_labels=True) == []
    header = read_header(tmp_path / "a")
    assert {s: {i["subject"] for i in header[s]} for s in SPLITS} == {
        "training": {"subject1"},
        "validation": {"subject3"},
        "test": {"subject2"},
    }
    item = datalist(tmp_path / "a", "training", ("image", "label"))[0]
    # Exact where edges fall between target rows, which they do at half the size.
    assert (read_array(item["image"]) == read_array(item["label"]) * 20).all()
    assert item["spacing_mm"] == pytest.approx([2 * 0.00387, 0.0115])


def test_crop_keeps_the_retina(tmp_path):
    source = fake_source(tmp_path / "source")
    bscan = next(spectralis_healthy.read_bscans(source, 1))
    cut = spectralis_healthy.crop(bscan, 80 * 3.87, 0.0115 * 20)
    assert cut.image.shape == (80, 20)
    assert (label_map(cut.surfaces, 80) == cut.image // 20).all()
    assert set(np.unique(cut.image // 20)) == set(range(9))
    whole = spectralis_healthy.crop(bscan, 1e6, 1e3)
    assert whole.image.shape == bscan.image.shape


def test_spectralis_refuses_bad_input(tmp_path, capsys):
    source = fake_source(tmp_path / "source")
    out = str(tmp_path / "a")
    for arguments, message in (
        ([str(tmp_path), out], "no images/"),
        ([str(source), out, "--training", "1", "--test", "1"], "listed twice"),
        ([str(source), out, "--training", "1", "--subjects", "1"], "cannot be combined"),
        ([str(source), out, "--training", "9"], r"subjects [9] are not in"),
        ([str(source), out, "--crop-um", "-3"], "expected a positive number"),
    ):
        assert spectralis_healthy.main(arguments) == 1
        assert message in capsys.readouterr().err
    (source / "boundaries" / "Subject1_4.txt").unlink()
    with pytest.raises(ValueError, match=r"Subject1_4\.txt' is missing"):
        next(spectralis_healthy.read_bscans(source, 1))


def test_spectralis_notices_wrong_order_and_wrong_subject(tmp_path):
    source = fake_source(tmp_path / "source")
    first, last = (source / "boundaries" / f"Subject1_{k}.txt" for k in (1, 8))
    text = first.read_text()
    first.write_text(last.read_text())
    last.write_text(text)
    with pytest.raises(ValueError, match="surfaces cross"):
        spectralis_healthy.write_spectralis_healthy(source, tmp_path / "a", {1: "training"})
    for path in (source / "boundaries").glob("Subject2_*.txt"):
        np.savetxt(path, np.full((30, 2), 5.0), delimiter=",")
    with pytest.raises(ValueError, match="48 columns, but the boundaries hold 2 B-scans with 30"):
        list(spectralis_healthy.read_bscans(source, 2))


# Home OCT made of clinical B-scans


EXAM = phantom.Exam("full", first_subject=0)


def test_home_oct_keeps_splits_subjects_and_labels(tmp_path):
    clinical = phantom.write_phantom(tmp_path / "a", "spectralis", 3, 2, size=64, exam=EXAM)
    assert home_oct.main([str(clinical), str(tmp_path / "b"), "--seed", "1"]) == 0
    assert check(tmp_path / "b", need_labels=True) == []
    header = read_header(tmp_path / "b")
    assert header["device"] == "home_oct"
    assert header["simulated_device"] is True
    assert header["labels"] == read_header(clinical)["labels"]
    for split in SPLITS:
        for one, two in zip(datalist(clinical, split), datalist(tmp_path / "b", split), strict=True):
            assert (one["subject"], one["scan"]) == (two["subject"], two["scan"])
            assert two["spacing_mm"][0] < one["spacing_mm"][0]  # a smaller window: the retina is taller


def test_home_oct_is_deterministic_and_refuses_its_own(tmp_path, capsys):
    clinical = phantom.write_phantom(tmp_path / "a", "spectralis", 3, 1, size=48)
    seeds = {"b": 0, "c": 0, "d": 1}
    folders = [home_oct.write_home_oct(clinical, tmp_path / k, home_oct.HomeDevice(seed=v)) for k, v in seeds.items()]
    first = [read_array(datalist(f, "training")[0]["image"]) for f in folders]
    assert (first[0] == first[1]).all()
    assert (first[0] != first[2]).any()
    assert home_oct.main([str(folders[0]), str(tmp_path / "e")]) == 1
    assert "already" in capsys.readouterr().err


def test_window_of_the_home_device_holds_the_retina():
    labels = label_map(np.array([[100.0], [160.0]]).repeat(256, axis=1), 256)
    for seed in range(20):
        rows, columns = home_oct.draw_window(labels, (0.0075, 0.027), np.random.default_rng(seed))
        assert 0 <= rows.start <= 100
        assert 160 <= rows.stop <= 256
        assert 1.0 <= (rows.stop - rows.start) * 0.0075 <= 1.42
        assert 3.95 <= (columns.stop - columns.start) * 0.027 <= 5.05


def test_enlarged_labels_follow_the_enlarged_image():
    labels = label_map(np.array([[10.0], [20.0]]).repeat(16, axis=1), 32)
    labels[:, 3] = 255
    image = np.where(labels == 255, 1, labels).astype(np.uint8) * 100
    big, moved = home_oct.enlarge(image, labels, (64, 32), 2)
    valid = moved != 255
    assert 0.8 < valid.mean() < 1
    assert np.abs(big.astype(int) - 100 * moved)[valid].mean() < 5


# Real B-scans


@needs_real
def test_real_bscans(tmp_path):
    parts = {1: "training", 4: "training", 6: "validation", 7: "test"}
    folder, crossing = spectralis_healthy.write_spectralis_healthy(
        REAL, tmp_path / "a", parts, spectralis_healthy.Windows(size=128)
    )
    assert 0.004 < crossing < 0.016
    assert check(folder, need_labels=True) == []
    items = {s: datalist(folder, s, ("image", "label")) for s in SPLITS}
    assert [len(items[s]) for s in SPLITS] == [20, 10, 10]
    grey = {k: [] for k in range(9)}
    for item in items["training"]:
        image, label = read_array(item["image"]), read_array(item["label"])
        for k in grey:
            grey[k].append(image[label == k].mean())
    mean = [np.mean(grey[k]) for k in range(9)]
    assert mean[0] < 40 < mean[5] < mean[3] < mean[4] < mean[2] < mean[1] < mean[7]


@needs_real
@pytest.mark.parametrize("surface", [0, 5])
def test_traced_rows_fit_the_edges_after_the_shift(surface):
    # ILM and IS/OS are steps from dark to bright: the central difference peaks at the traced row, were it 0-based.
    slope = np.zeros(5)
    for subject in spectralis_healthy.read_subjects(REAL):
        for bscan in spectralis_healthy.read_bscans(REAL, subject):
            grey, rows = bscan.image.astype(float), np.rint(bscan.surfaces[surface]).astype(int)
            x = np.arange(rows.size)
            slope += [(grey[rows + d + 1, x] - grey[rows + d - 1, x]).mean() for d in range(-2, 3)]
    assert int(np.argmax(slope)) - 2 == 0


@needs_real
def test_simulation_looks_like_the_real_device():
    real = compare_simulation.measure(compare_simulation.real_pairs(REAL, 256)[::5])
    fake = compare_simulation.measure(compare_simulation.simulated_pairs("spectralis", 8, 2, 256, 0))
    for layer in compare_simulation.LAYERS:
        assert fake[layer][0] == pytest.approx(real[layer][0], abs=20), layer


# Measurements


def test_measurements_of_known_images(tmp_path):
    label = np.repeat(np.repeat(np.arange(9, dtype=np.uint8), 16)[:, None], 64, axis=1)
    image = (label * 20).astype(np.uint8)
    noisy = (image + np.random.default_rng(0).choice([0, 10], image.shape)).astype(np.uint8)
    found = compare_simulation.measure([(noisy, label, 4.0)])
    assert found["INL"][0] == pytest.approx(65, abs=0.5)
    assert found["noise GCL+IPL"][0] == pytest.approx(5, abs=0.2)
    assert found["CNR GCL+IPL, INL"][0] == pytest.approx(20 / 5, rel=0.05)
    assert "| INL | 65 ± 0 |" in compare_simulation.table({"set": found})
    traced_late = label.copy()
    traced_late[1:][label[1:] != label[:-1]] -= 1  # the first row of every layer is counted to the one above
    found = compare_simulation.measure([(noisy, traced_late, 4.0)])
    assert found["CNR GCL+IPL, INL"][0] < 3
    assert found["CNR GCL+IPL, INL inside"][0] == pytest.approx(20 / 5, rel=0.05)
    assert found["RNFL inside"][0] == pytest.approx(25, abs=0.5)
    assert found["50 to 70 um below"][0] == pytest.approx(165, abs=1)
    pytest.importorskip("matplotlib")
    compare_simulation.draw({"one": [image, noisy], "two": [noisy, image]}, tmp_path / "x" / "picture.png")
    assert Image.open(tmp_path / "x" / "picture.png").size[0] > 100


def test_comparison_without_real_data_fails_with_a_message(tmp_path, capsys):
    assert compare_simulation.main(["--real", str(tmp_path), "--output", str(tmp_path)]) == 1
    assert "no images/" in capsys.readouterr().err
