"""The sources of real scans: what a file says is what the data set says, and nothing that tells whose eye it is."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from command_line import CliRunner
from data_prep import dicom, heidelberg, home_oct, image_folder, overlay, phantom, spectralis_healthy, volumes
from data_prep.grey import from_reflectivity, mask_white_border, resize_grey, resize_nearest, to_grey
from data_prep.label_schemes import PAPER, read_scheme
from data_prep.privacy import burnt_in_text, pseudonym, read_key
from data_prep.surface_files import read_surfaces
from oct_files import (
    COLUMNS,
    NAMES,
    ROWS,
    SECRETS,
    binary_segmentation,
    bscan,
    e2e,
    label,
    label_map,
    nifti,
    opt,
    picture,
    save,
    single_frame,
    surface_segmentation,
    surfaces,
    vol,
)
from unicorn_monai.cli import app
from unicorn_monai.data.checks import check, problems
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import SPLITS, label_names, read_header
from unicorn_monai.images.files import read_array
from unicorn_monai.images.orientation import judge, row_evidence
from unicorn_monai.images.surfaces import label_map as rasterise
from unicorn_monai.images.surfaces import surfaces_from_labels

DATA = Path(os.environ.get("UNICORN_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real files not found in {DATA}; set UNICORN_DATA")
SAME = ("--size", str(ROWS), str(COLUMNS))


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "keys" / "key"))


def needs_eyepy() -> None:
    pytest.importorskip("eyepy", reason="eyepy reads Heidelberg's exports: pip install 'unicorn-monai[heidelberg]'")


def run(module, root: Path, output: Path, *options: str) -> list[dict]:
    """Convert, and list the items; one subject unless --split is given."""
    split = [] if "--split" in options else ["--split", "1", "0", "0"]
    assert module.main([str(root), str(output), *split, *options]) == 0
    return datalist(output, [s for s in SPLITS if read_header(output)[s]])


def four_labels(folder: Path) -> str:
    path = folder / "four.json"
    path.write_text(json.dumps({"0": "vitreous", "1": "inner", "2": "outer", "3": "choroid"}))
    return str(path)


def assert_nobody_is_named(output: Path) -> None:
    for path in (p for p in output.rglob("*") if p.is_file()):
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        for secret in SECRETS:
            assert secret.encode() not in content, f"{secret} in {path}"
            assert secret.encode("utf-16le") not in content, f"{secret} in {path}"
        assert not any(secret in path.name for secret in SECRETS)


# ---------------------------------------------------------------- Heidelberg


def test_a_vol_export_keeps_pixels_layers_and_scale(tmp_path):
    needs_eyepy()
    vol(tmp_path / "in" / "Mustermann.vol")
    items = run(heidelberg, tmp_path / "in", tmp_path / "out", *SAME)
    assert len(items) == 2
    header = read_header(tmp_path / "out")
    assert (header["device"], label_names(tmp_path / "out")) == ("Spectralis", list(PAPER.names))
    for k, item in enumerate(items):
        image, labels = read_array(item["image"]), read_array(item["label"])
        np.testing.assert_array_equal(image[5:], bscan(k)[5:])  # v = (g / 255)^4 comes back through the curve v^(1/4)
        assert (image[:5] == 0).all()
        assert (labels[:5] == 255).all()  # 3.4e38: outside the scanned window
        assert (labels[:, :3] == 255).all()  # A-scans without layers
        expected = rasterise(np.repeat(10 + 2.5 * np.arange(9)[:, None], COLUMNS, axis=1), ROWS)
        np.testing.assert_array_equal(labels[5:, 3:], expected[5:, 3:])
        assert (item["laterality"], item["quality"], item["scan"]) == ("OD", 31.5, k)
        assert item["spacing_mm"] == pytest.approx([0.00387, 0.012])
    assert_nobody_is_named(tmp_path / "out")


def test_an_e2e_file_of_two_patients_and_eyes(tmp_path):
    needs_eyepy()
    e2e(tmp_path / "in" / "a.e2e")
    items = run(heidelberg, tmp_path / "in", tmp_path / "out", *SAME, "--split", "0.5", "0", "0.5")
    assert len({item["subject"] for item in items}) == 2
    assert sorted(item["laterality"] for item in items) == ["OD"] * 2 + ["OS"] * 2
    for item in items:
        person = 1 if item["laterality"] == "OD" else 2
        np.testing.assert_allclose(read_array(item["image"]), bscan(item["scan"] + 3 * person), atol=1)  # 10 bits
        assert item["spacing_mm"] == pytest.approx([0.00387, 20 / COLUMNS * 0.2896], rel=1e-4)
        assert item["lateral_spacing"] == "estimated"
        label_ = read_array(item["label"])
        expected = rasterise(np.repeat(10 + 2.5 * np.arange(9)[:, None], COLUMNS, axis=1), ROWS)
        np.testing.assert_array_equal(label_, expected)
    assert_nobody_is_named(tmp_path / "out")


@needs_data
def test_the_real_vol_export_is_read(tmp_path, capsys):
    needs_eyepy()
    items = run(
        heidelberg, DATA / "formats/heyex_vol_real", tmp_path / "out", "--labels", "retina", "--size", "496", "768"
    )
    assert "invalid.vol: file: found no readable .vol export (found 0 bytes" in capsys.readouterr().out
    assert len(items) == 1
    assert items[0]["spacing_mm"] == pytest.approx([0.0038717, 0.017891], rel=1e-4)
    image, labels = read_array(items[0]["image"]), read_array(items[0]["label"])
    assert 20 < image.mean() < 60
    assert set(np.unique(labels)) == {0, 1, 2, 255}  # 3.4e38 where the device found no layers


@needs_data
@pytest.mark.parametrize(("name", "labelled"), [("heyex_vol_dummy", 0), ("heyex_xml_dummy", 10)])
def test_the_sample_exports_are_read(name, labelled, tmp_path):
    needs_eyepy()
    items = run(heidelberg, DATA / "formats" / name, tmp_path / "out", "--size", "40", "50")
    assert len(items) == 10
    assert sum("label" in item for item in items) == labelled
    assert {item["laterality"] for item in items} == {"OD"}
    assert items[0]["spacing_mm"] == pytest.approx([0.003872, 0.011819])
    if labelled:
        missing = read_array(items[0]["label"]) == 255
        assert 0.2 < missing.all(axis=0).mean() < 0.6  # 3e38 in the file
        assert missing.all(axis=0).sum() * 40 == missing.sum()


# ---------------------------------------------------------------- DICOM


@pytest.mark.parametrize("compress", [None, RLELossless, JPEG2000Lossless], ids=["plain", "RLE", "JPEG 2000"])
def test_frames_of_a_dicom_volume_are_bscans(compress, tmp_path):
    image = opt()
    if compress is RLELossless:
        image.compress(RLELossless)
    elif compress is JPEG2000Lossless:
        image.PixelData = encapsulate([jpeg_2000(bscan(k)) for k in range(3)])
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    save(image, tmp_path / "in" / "a.dcm")
    items = run(dicom, tmp_path / "in", tmp_path / "out", *SAME)
    for k, item in enumerate(items):
        np.testing.assert_array_equal(read_array(item["image"]), bscan(k))
        assert (item["scan"], item["laterality"], item["spacing_mm"]) == (k, "OS", pytest.approx([0.004, 0.012]))
    assert read_header(tmp_path / "out")["device"] == "Acme Retina 3"
    assert_nobody_is_named(tmp_path / "out")


def jpeg_2000(array: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG2000", irreversible=False, no_jp2=True)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [label_map, binary_segmentation], ids=["label map", "binary"])
def test_segmentation_objects_become_label_maps(make, tmp_path):
    image = opt()
    save(image, tmp_path / "in" / "image")
    save(make(image), tmp_path / "in" / "segmentation.dcm")
    items = run(dicom, tmp_path / "in", tmp_path / "out", *SAME)
    assert label_names(tmp_path / "out") == ["background", *NAMES.values()]  # codes, not what somebody typed
    for k, item in enumerate(items):
        np.testing.assert_array_equal(read_array(item["label"]), label(k))
    assert_nobody_is_named(tmp_path / "out")


def test_surface_objects_become_label_maps(tmp_path):
    image = opt()
    save(image, tmp_path / "in" / "image.dcm")
    save(surface_segmentation(image), tmp_path / "in" / "surfaces.dcm")
    items = run(dicom, tmp_path / "in", tmp_path / "out", *SAME)
    for k, item in enumerate(items):
        np.testing.assert_array_equal(read_array(item["label"]), label(k))


def test_single_frames_of_a_series_are_one_volume_in_order(tmp_path):
    for number, name in ((1, "c"), (2, "a"), (3, "b")):
        save(single_frame(number, "1.2.3"), tmp_path / "in" / name)
    items = run(dicom, tmp_path / "in", tmp_path / "out", *SAME)
    assert [(item["volume"], item["scan"]) for item in items] == [(0, 0), (0, 1), (0, 2)]
    for number, item in enumerate(items, start=1):
        np.testing.assert_array_equal(read_array(item["image"]), bscan(number))


def test_monochrome1_is_inverted_and_more_bits_are_scaled(tmp_path):
    negative = np.stack([255 - bscan(k) for k in range(3)])
    save(opt(array=negative, PhotometricInterpretation="MONOCHROME1"), tmp_path / "a" / "a.dcm")
    twelve = np.stack([np.rint(bscan(k) / 255 * 4095) for k in range(3)])
    save(opt(array=twelve, bits=12), tmp_path / "b" / "b.dcm")
    for name in "ab":
        for k, item in enumerate(run(dicom, tmp_path / name, tmp_path / f"out{name}", *SAME)):
            np.testing.assert_array_equal(read_array(item["image"]), bscan(k))


# ---------------------------------------------------------------- volumes


def test_nifti_volumes_are_cut_along_the_axis_named(tmp_path):
    turned = np.stack([bscan(k) for k in range(3)])
    nifti(tmp_path / "a" / "p" / "v.nii.gz")
    nifti(tmp_path / "b" / "p" / "v.nii", turned, spacing=(0.12, 0.004, 0.012))
    for name, axes in (("a", "adb"), ("b", "bda")):
        items = run(volumes, tmp_path / name, tmp_path / f"out{name}", "--axes", axes, *SAME)
        for k, item in enumerate(items):
            np.testing.assert_array_equal(read_array(item["image"]), bscan(k))
            assert item["spacing_mm"] == pytest.approx([0.004, 0.012])
            written = nib.load(item["image"])
            assert bytes(written.header["descrip"]).strip(b"\0") == b""
            assert len(written.header.extensions) == 0
        assert_nobody_is_named(tmp_path / f"out{name}")


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
def test_other_volumes_are_read_by_itk(suffix, tmp_path):
    import itk

    image = itk.image_from_array(np.stack([bscan(k) for k in range(3)]))
    image.SetSpacing([0.012, 0.004, 0.12])
    (tmp_path / "in" / "p").mkdir(parents=True)
    itk.imwrite(image, str(tmp_path / "in" / "p" / f"v{suffix}"))
    items = run(volumes, tmp_path / "in", tmp_path / "out", *SAME)
    assert len(items) == 3
    for k, item in enumerate(items):
        np.testing.assert_array_equal(read_array(item["image"]), bscan(k))
        assert item["spacing_mm"] == pytest.approx([0.004, 0.012])


LAYOUTS = {
    "folders": ("images/p1/v.nii.gz", "labels/p1/v.nii.gz", ()),
    "nnU-Net": (
        "imagesTr/case_7_0000.nii.gz",
        "labelsTr/case_7.nii.gz",
        ("--images", "imagesTr/*_0000.nii.gz", "--label", "labelsTr/{case}.nii.gz", "--subject-pattern", r"(case_\d+)"),
    ),
    "RETOUCH": (
        "train/7/oct.nii.gz",
        "train/7/reference.nii.gz",
        ("--images", "**/oct.*", "--label", "{folder}/reference.nii.gz", "--subject-pattern", r"train/(\d+)"),
    ),
}


@pytest.mark.parametrize(("image", "labels", "options"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_label_volumes_are_found(image, labels, options, tmp_path):
    nifti(tmp_path / "in" / image)
    nifti(tmp_path / "in" / labels, np.stack([label(k).T for k in range(3)], axis=2))
    items = run(volumes, tmp_path / "in", tmp_path / "out", *options, *SAME, "--labels", four_labels(tmp_path))
    assert len(items) == 3
    for k, item in enumerate(items):
        np.testing.assert_array_equal(read_array(item["label"]), label(k))


MIRRORED, TOLD = np.diag([-0.012, 0.004, 0.12, 1.0]), np.diag([0.012, 0.004, 0.12, 1.0])


@pytest.mark.parametrize(
    ("image", "labels", "refused"),
    [(TOLD, TOLD, False), (MIRRORED, MIRRORED, False), (TOLD, MIRRORED, True), (TOLD, None, False)],
    ids=["the same", "both mirrored", "mirrored", "not told"],
)
def test_a_label_volume_that_is_mirrored_by_its_header_is_refused(image, labels, refused, tmp_path, capsys):
    for folder, affine, planes in (("images", image, bscan), ("labels", labels, label)):
        volume = nib.Nifti1Image(np.stack([planes(k).T for k in range(3)], axis=2), affine)
        volume.header.set_xyzt_units("mm")
        path = tmp_path / "in" / folder / "p1" / "v.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(volume, path)
    options = ["--axes", "adb", "--spacing-mm", "0.004", "0.012", *SAME, "--split", "1", "0", "0"]
    options += ["--labels", four_labels(tmp_path)]
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), *options]
    assert (volumes.main(arguments) == 0) == (not refused)
    told = capsys.readouterr()
    assert ("mirrored or turned against the image by its header" in told.out + told.err) == refused


@pytest.mark.parametrize(("sign", "refused"), [(1, False), (-1, True)])
def test_a_label_volume_of_itk_is_compared_too(sign, refused, tmp_path, capsys):
    import itk

    for folder, planes, way in (("images", bscan, 1), ("labels", label, sign)):
        image = itk.image_from_array(np.stack([planes(k).astype(np.uint8) for k in range(3)]))
        image.SetSpacing([0.012, 0.004, 0.12])
        image.SetDirection(np.diag([way, 1.0, 1.0]))
        path = tmp_path / "in" / folder / "p1" / "v.mha"
        path.parent.mkdir(parents=True)
        itk.imwrite(image, str(path))
    options = [*SAME, "--split", "1", "0", "0", "--labels", four_labels(tmp_path)]
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), *options]
    assert (volumes.main(arguments) == 0) == (not refused)
    told = capsys.readouterr()
    assert ("mirrored or turned against the image by its header" in told.out + told.err) == refused


@pytest.mark.parametrize(("told", "refused"), [(True, True), (False, False)])
def test_a_label_volume_whose_header_tells_no_directions_is_taken(told, refused, tmp_path, capsys):
    rows, columns = bscan(0).shape
    head = f"NRRD0004\ntype: unsigned char\ndimension: 3\nsizes: {columns} {rows} 3\nencoding: raw\n"
    space = "space: left-posterior-superior\nspace directions: ({}0.012,0,0) (0,0.004,0) (0,0,0.12)\n"
    for folder, planes, way in (("images", bscan, space.format("-")), ("labels", label, space.format("") * told)):
        voxels = np.stack([planes(k).astype(np.uint8) for k in range(3)])
        path = tmp_path / "in" / folder / "p1" / "v.nrrd"
        path.parent.mkdir(parents=True)
        path.write_bytes(f"{head}{way}\n".encode() + voxels.tobytes())
    options = [*SAME, "--split", "1", "0", "0", "--labels", four_labels(tmp_path)]
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), *options]
    assert (volumes.main(arguments) == 0) == (not refused)
    given = capsys.readouterr()
    assert ("mirrored or turned against the image by its header" in given.out + given.err) == refused


# ---------------------------------------------------------------- image folders


def write_surfaces(path: Path, rows: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mat":
        from scipy.io import savemat

        savemat(path, {"boundaries": rows + 1.0})  # MATLAB counts from 1
    else:
        np.savetxt(path, rows.T, delimiter="," if path.suffix == ".csv" else " ")


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".mat"])
def test_surfaces_beside_the_images(suffix, tmp_path):
    for k in range(2):
        picture(tmp_path / f"in/images/p1/{k}.png", bscan(k))
        write_surfaces(tmp_path / f"in/labels/p1/{k}{suffix}", surfaces(k))
    items = run(image_folder, tmp_path / "in", tmp_path / "out", *SAME)
    assert label_names(tmp_path / "out")[0] == "above surface 1"
    for k, item in enumerate(items):
        np.testing.assert_array_equal(read_array(item["label"]), label(k))


def test_surfaces_with_names_are_chosen_by_name(tmp_path):
    picture(tmp_path / "in/images/p1/0.png", bscan(0))
    path = tmp_path / "in/labels/p1/0.csv"
    path.parent.mkdir(parents=True)
    rows = surfaces(0)
    path.write_text("\n".join(["BM,ILM,noise", *(f"{r[2]},{r[0]},7" for r in rows.T)]))
    items = run(image_folder, tmp_path / "in", tmp_path / "out", *SAME, "--labels", "retina")
    np.testing.assert_array_equal(read_array(items[0]["label"]), rasterise(rows[[0, 2]], ROWS))


def test_label_images_are_renamed_by_a_scheme_and_png_text_is_dropped(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Mustermann Erika")
    picture(tmp_path / "in/images/p1/0.png", bscan(0), pnginfo=text)
    picture(tmp_path / "in/labels/p1/0.png", label(0) * 80)
    scheme = {"labels": {"0": "a", "1": "b", "2": "c"}, "values": {"0": 0, "80": 1, "160": 2, "240": 255}}
    (tmp_path / "scheme.json").write_text(json.dumps(scheme))
    items = run(image_folder, tmp_path / "in", tmp_path / "out", *SAME, "--labels", str(tmp_path / "scheme.json"))
    np.testing.assert_array_equal(read_array(items[0]["label"]), np.where(label(0) == 3, 255, label(0)))
    assert_nobody_is_named(tmp_path / "out")


VALUES = {  # "values" of the label file, label image, what it means; or why it is refused
    "a named 0 is not mentioned": ({"128": 1, "255": 2}, [0, 128, 255], [0, 1, 2]),
    "a named 2 is not mentioned": ({"7": 1}, [2, 7, 255], [2, 1, 255]),
    "0 is ignored, 1 and 2 are not mentioned": ({"0": 255}, [0, 1, 2], [255, 1, 2]),
    "labels change places": ({"0": 1, "1": 0}, [0, 1, 2], [1, 0, 2]),
    "made of another value": (
        {"128": 1, "255": 2},
        [1, 0, 255],
        r'\[1\]; expected \[0, 128, 255\].*add "1": 1 if both',
    ),
    "not named at all": ({"128": 1}, [3, 0, 0], r"found \[3\]; expected \[0, 2, 128, 255\]"),
}


@pytest.mark.parametrize(("values", "found", "meaning"), VALUES.values(), ids=VALUES.keys())
def test_values_that_are_not_mentioned_stay_what_they_are(tmp_path, values, found, meaning):
    (tmp_path / "scheme.json").write_text(json.dumps({"labels": {"0": "a", "1": "b", "2": "c"}, "values": values}))
    scheme = read_scheme(str(tmp_path / "scheme.json"))
    if isinstance(meaning, str):
        with pytest.raises(ValueError, match=meaning):
            scheme.replace(np.array([found]))
    else:
        assert scheme.replace(np.array([found])).tolist() == [meaning]


@pytest.mark.parametrize("options", [["--labels", "none"], ["--labels", "retina"], []])
def test_no_label_table_where_no_image_has_a_label(tmp_path, options):
    picture(tmp_path / "in/images/p1/0.png", bscan(0))
    if options == ["--labels", "none"]:
        picture(tmp_path / "in/labels/p1/0.png", label(0))
    for resumed in ([], ["--resume"]):
        run(image_folder, tmp_path / "in", tmp_path / "out", *SAME, *options, *resumed)
        assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"] == {}
    assert check(tmp_path / "out") == []


def test_colour_images_become_a_colour_data_set(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(2):
        colours = rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)
        picture(tmp_path / f"in/street/{k}.png", colours)
    items = run(image_folder, tmp_path / "in", tmp_path / "out", "--modality", "RGB", "--size", "30", "20")
    assert read_header(tmp_path / "out")["modality"] == "RGB"
    np.testing.assert_array_equal(read_array(items[1]["image"]), colours)


def test_pages_of_a_tiff_are_bscans(tmp_path):
    (tmp_path / "in" / "p1").mkdir(parents=True)
    pages = [Image.fromarray(bscan(k)) for k in range(3)]
    pages[0].save(tmp_path / "in/p1/volume.tif", save_all=True, append_images=pages[1:])
    items = run(image_folder, tmp_path / "in", tmp_path / "out", *SAME)
    assert [item["scan"] for item in items] == [0, 1, 2]
    for k, item in enumerate(items):
        np.testing.assert_array_equal(read_array(item["image"]), bscan(k))


@needs_data
def test_the_real_surfaces_of_octexplorer(tmp_path):
    xml = DATA / "formats/iowa_surfaces/TEST_T_566581_Surfaces_Iowa.xml"
    found = read_surfaces(xml, 512, None)
    assert list(found)[:2] == ["ILM", "RNFL-GCL"]
    assert found["ILM"].shape == (19, 512)
    assert found["ILM"][0, 0] == 173
    missing = np.isnan(found["ILM"])
    assert missing.sum() == 84  # undefined_region
    assert not missing[0].any()
    assert np.isnan(found["OB_RPE"][18, 511])
    # As labels of images that are made from them: edges lie where the surfaces say.
    order = [rows for name, rows in found.items() if name in ("ILM", "INL-OPL", "OB_RPE")]
    for z in range(19):
        stack = np.stack([rows[z] for rows in order])
        grey = (np.nan_to_num(stack)[:, None] <= np.arange(496)[:, None]).sum(axis=0) * 60 + z
        picture(tmp_path / f"in/images/eye/{z + 1}.png", grey.astype(np.uint8))
    (tmp_path / "in/labels").mkdir()
    (tmp_path / "in/labels/eye.xml").write_bytes(xml.read_bytes())
    scheme = {"labels": {"0": "a", "1": "b", "2": "c", "3": "d"}, "surfaces": ["ILM", "INL-OPL", "OB_RPE"]}
    (tmp_path / "scheme.json").write_text(json.dumps(scheme))
    options = ("--size", "496", "512", "--labels", str(tmp_path / "scheme.json"))
    items = run(image_folder, tmp_path / "in", tmp_path / "out", *options)
    assert len(items) == 19
    nine = run(image_folder, tmp_path / "in", tmp_path / "nine", "--labels", "octexplorer")
    assert label_names(tmp_path / "nine")[6:] == ["EZ", "OS/RPE", "choroid and below"]
    assert set(np.unique(read_array(nine[9]["label"]))) >= set(range(9))
    for item in items:
        image, labels = read_array(item["image"]), read_array(item["label"])
        valid = labels != 255
        np.testing.assert_array_equal(labels[valid], (image[valid] - item["scan"]) // 60)


@needs_data
def test_the_real_circular_scan_of_a_mat_file(tmp_path):
    for name, kind in (("circularScan", "images"), ("circularScan_0_coordinates", "labels")):
        (tmp_path / "in" / kind / "eye").mkdir(parents=True)
        content = (DATA / f"formats/rathke_mat/{name}.mat").read_bytes()
        (tmp_path / "in" / kind / "eye" / "0.mat").write_bytes(content)
    options = ("--mat-image", "B0", "--mat-surfaces", "interpolation", "--reflectivity", "--size", "496", "768")
    items = run(image_folder, tmp_path / "in", tmp_path / "out", *options)
    image, labels = read_array(items[0]["image"]).astype(float), read_array(items[0]["label"])
    assert set(np.unique(labels)) == set(range(10))
    assert image[labels == 1].mean() > 2 * image[labels == 0].mean()  # nerve fibres against vitreous
    ilm = surfaces_from_labels(labels, 9)[0]
    rows, x = np.ceil(ilm).astype(int), np.arange(768)
    steps = [(image[rows + d, x] - image[rows + d - 1, x]).mean() for d in range(-3, 4)]
    assert int(np.argmax(steps)) - 3 in (-1, 0, 1)  # the edge is where the surface is


# ---------------------------------------------------------------- privacy


def test_pseudonyms_are_stable_under_a_key_and_unknown_without_it(tmp_path):
    key = read_key(tmp_path / "k" / "key", tmp_path / "out")
    assert (tmp_path / "k" / "key").stat().st_mode & 0o777 == 0o600
    assert read_key(tmp_path / "k" / "key", tmp_path / "out") == key
    assert pseudonym("PAT-4711", key) == pseudonym(" PAT-4711 ", key)
    assert len({pseudonym(name, k) for name in ("PAT-4711", "PAT-4712") for k in (key, bytes(32))}) == 4
    # RFC 4231 case 2, cut to twelve digits
    assert pseudonym("what do ya want for nothing?", b"Jefe") == "s5bdcc146bf60"
    with pytest.raises(ValueError, match="must not travel"):
        read_key(tmp_path / "out" / "key", tmp_path / "out")


def test_one_person_has_one_pseudonym_in_all_formats(tmp_path):
    needs_eyepy()
    vol(tmp_path / "a" / "x.vol")
    save(opt(), tmp_path / "b" / "x.dcm")
    one = run(heidelberg, tmp_path / "a", tmp_path / "outa")
    two = run(dicom, tmp_path / "b", tmp_path / "outb")
    assert {i["subject"] for i in one} == {i["subject"] for i in two}
    kept = run(dicom, tmp_path / "b", tmp_path / "outc", "--keep-original-ids")
    assert {i["subject"] for i in kept} == {"PAT-4711"}


def test_subjects_are_split_and_never_shared(tmp_path):
    for p in range(10):
        for k in range(2):
            picture(tmp_path / f"in/patient{p}/{k}.png", bscan(2 * p + k))
    parts = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(image_folder, tmp_path / "in", tmp_path / name, "--split", "0.6", "0.2", "0.2", "--seed", seed)
        header = read_header(tmp_path / name)
        parts.append({split: sorted({i["subject"] for i in header[split]}) for split in SPLITS})
        assert [len(parts[-1][s]) for s in SPLITS] == [6, 2, 2]
        assert check(tmp_path / name) == []
    assert parts[0] == parts[1] != parts[2]


def test_burnt_in_text_is_noticed(tmp_path, capsys):
    speckle = np.random.default_rng(0).gamma(2, 20, (256, 256)).clip(0, 255).astype(np.uint8)
    assert burnt_in_text(speckle) is None
    drawn = Image.fromarray(np.where(np.arange(256)[:, None] < 60, 0, speckle).astype(np.uint8))
    ImageDraw.Draw(drawn).text((10, 10), "Mustermann, Erika 12.08.1964", fill=255, font_size=24)
    assert burnt_in_text(np.asarray(drawn)) == "pure white on a dark ground"
    coloured = Image.fromarray(np.dstack([speckle] * 3))
    ImageDraw.Draw(coloured).line((20, 20, 200, 20), fill=(0, 255, 0), width=2)
    assert burnt_in_text(np.asarray(coloured)) == "coloured pixels in a grey image"
    picture(tmp_path / "in/p/0.png", np.asarray(drawn))
    run(image_folder, tmp_path / "in", tmp_path / "out")
    assert "burnt-in text or a scan box?" in capsys.readouterr().out


@needs_data
def test_real_bscans_raise_no_false_alarm():
    evidence = []
    for path in sorted((DATA / "spectralis_healthy/images").glob("*.png")):
        image = np.asarray(Image.open(path).convert("L"))
        assert burnt_in_text(image) is None, path
        evidence.append(image)
    assert judge([row_evidence(i) for i in evidence], []) is None
    assert judge([row_evidence(i[::-1]) for i in evidence], [])[0] == "upside down"
    assert judge([row_evidence(i.T) for i in evidence], [])[0] == "transposed"


@needs_data
def test_the_worked_example_passes_the_check(tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [str(DATA / "spectralis_healthy"), str(output), "--size", "96", "--training", "1", "2", "--test", "3"]
    assert spectralis_healthy.main(arguments) == 0
    told = capsys.readouterr().out
    assert "30 images of 'spectralis'" in told
    assert "label   8 choroid and below" in told
    assert problems(output, need_labels=True) == []
    assert overlay.main([str(output), str(tmp_path / "p" / "overlay.png"), "--count", "3", "--height", "96"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "p" / "overlay.png").convert("RGB")).astype(int)
    assert sheet.shape == (196, 296, 3)
    assert (np.ptp(sheet[:96], axis=2) == 0).all()  # the images as they are
    assert (np.ptp(sheet[100:], axis=2) > 40).mean() > 0.02  # borders in colour below


# ---------------------------------------------------------------- grey levels, sizes, schemes


def test_grey_levels_are_stretched_by_a_stated_window_only():
    assert to_grey(np.array([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
    assert to_grey(np.array([0, 7, 255], dtype=np.int32)).tolist() == [0, 7, 255]
    assert to_grey(np.array([-100, 0, 100, 900]), (0, 200)).tolist() == [0, 0, 128, 255]
    with pytest.raises(ValueError, match=r"int64 values 0 to 1000; .*--window 0 1023"):
        to_grey(np.array([0, 1000]))
    with pytest.raises(ValueError, match="expected the first below the second"):
        to_grey(np.array([0, 1000]), (5, 5))


def test_reflectivity_is_shown_by_its_fourth_root():
    image, valid = from_reflectivity(np.array([[0.0, 1 / 16, 1.0, 3.4e38]]))
    assert image.tolist() == [[0, 128, 255, 0]]
    assert valid.tolist() == [[True, True, True, False]]
    assert from_reflectivity(np.array([[0.0, 200.0]]))[0].tolist() == [[0, 200]]  # grey levels already
    with pytest.raises(ValueError, match="expected reflectivity 0 to 1"):
        from_reflectivity(np.array([[np.nan, 1.0]]))


def test_what_does_not_exist_takes_no_part_in_averages():
    image = np.array([[100, 0], [100, 0]], np.uint8)
    valid = np.array([[True, False], [True, False]])
    small, exists = resize_grey(image, (1, 1), valid)
    assert (small.tolist(), exists.tolist()) == ([[0]], [[False]])  # just half exists
    valid[0, 1] = True
    small, exists = resize_grey(image, (1, 1), valid)
    assert (small.tolist(), exists.tolist()) == ([[67]], [[True]])
    assert resize_grey(image, (1, 1))[0].tolist() == [[50]]
    assert resize_grey(image[:, :1], (4, 1))[0].tolist() == [[100]] * 4


def test_labels_are_resampled_to_the_nearest():
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    assert resize_nearest(labels, (4, 4)).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert resize_nearest(resize_nearest(labels, (9, 5)), (2, 2)).tolist() == labels.tolist()


def test_white_filling_is_masked_at_the_borders_only():
    image = np.full((30, 3), 50, np.uint8)
    image[:9, 0] = 255  # filling
    image[25:, 1] = 255  # too short to be filling
    image[10:20, 2] = 255  # a bright layer
    valid = mask_white_border(image)
    assert (~valid).sum() == 9
    assert not valid[:9, 0].any()


BAD_SCHEMES = {
    "no file": (None, "is neither a file nor one of"),
    "no JSON": ("{", "is not valid JSON"),
    "list": ([1], "holds no table of labels"),
    "gap": ({"0": "a", "2": "b"}, "expected 0, 1, ... without gaps"),
    "too many surfaces": ({"labels": {"0": "a", "1": "b"}, "surfaces": ["x", "y"]}, "has 2 surfaces; expected 1"),
    "unknown entry": ({"labels": {"0": "a"}, "colour": 1}, r"has entries \['colour'\]"),
    "value to nowhere": ({"labels": {"0": "a"}, "values": {"7": 3}}, r"lead to \[3\]"),
    "value no number": ({"labels": {"0": "a"}, "values": {"x": 0}}, "'values' of"),
}


@pytest.mark.parametrize(("content", "message"), BAD_SCHEMES.values(), ids=BAD_SCHEMES.keys())
def test_a_bad_label_scheme_is_refused(content, message, tmp_path):
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_scheme(str(path))


# ---------------------------------------------------------------- the command line


def test_without_eyepy_the_message_says_what_to_install(tmp_path, monkeypatch, capsys):
    vol(tmp_path / "in" / "a.vol")
    monkeypatch.setitem(sys.modules, "eyepy", None)
    assert heidelberg.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "pip install 'unicorn-monai[heidelberg]'" in capsys.readouterr().err


def test_the_command_line_passes_everything_on(tmp_path):
    for k in range(3):
        picture(tmp_path / f"in/p{k}/0.png", bscan(k))
    run_cli = CliRunner()
    done = run_cli.invoke(app, ["prepare", "image_folder", str(tmp_path / "in"), str(tmp_path / "out"), *SAME])
    assert done.exit_code == 0, done.output
    done = run_cli.invoke(app, ["check", str(tmp_path / "out"), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["fatal"]) == (0, 0)
    done = run_cli.invoke(app, ["check", str(tmp_path / "out"), "--labels"])
    assert done.exit_code == 1
    assert "has no 'label', which this stage needs" in done.stdout
    assert run_cli.invoke(app, ["prepare", "nothing", "a", "b"]).exit_code == 2


def test_home_oct_takes_chosen_subjects_and_sizes(tmp_path):
    clinical = phantom.write_phantom(
        tmp_path / "a", "spectralis", 4, 1, size=48, exam=phantom.Exam("full", first_subject=0)
    )
    options = ["--subjects", "s000", "s001", "s002", "--split", "0.4", "0.3", "0.3", "--size", "32", "--labels", "none"]
    assert home_oct.main([str(clinical), str(tmp_path / "b"), *options, "--device-name", "Home 1"]) == 0
    header = read_header(tmp_path / "b")
    assert (header["device"], header["simulated_device"]) == ("Home 1", True)
    items = datalist(tmp_path / "b", SPLITS)
    assert sorted(item["subject"] for item in items) == ["s000", "s001", "s002"]
    assert [len(header[split]) for split in SPLITS] == [1, 1, 1]
    assert all("label" not in item and read_array(item["image"]).shape == (32, 32) for item in items)
    assert home_oct.main([str(clinical), str(tmp_path / "c"), "--subjects", "nobody"]) == 1
    assert home_oct.main([str(tmp_path / "b"), str(tmp_path / "d")]) == 1  # it is home OCT already
