"""Label maps of viewers, in their axes and with their numbers, and what the package makes of them."""

import importlib.util

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from unicorn_monai.images.files import read_array
from unicorn_monai.monailabel.label_files import read_client_label, served_suffix, suffix_of, write_like

NAMES = ["vitreous", "RNFL", "GCL+IPL"]
AFFINE = np.array([[-0.004, 0, 0, 3], [0, 0.012, 0, -2], [0, 0, 1, 0], [0, 0, 0, 1.0]])
MAP = np.array([[0, 0, 0, 0, 0], [1, 1, 1, 0, 1], [2, 2, 1, 2, 255]], np.uint8)  # rows = depth


def nifti(path, array):
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def png(path, array):
    Image.fromarray(array).save(path)
    return path


@pytest.fixture(params=["picture", "nifti", "slice"])
def image(request, tmp_path):
    pixels = np.zeros(MAP.shape, np.uint8)
    if request.param == "picture":
        return png(tmp_path / "image.png", pixels)
    return nifti(tmp_path / "image.nii.gz", pixels[..., None] if request.param == "slice" else pixels)


def in_file_axes(image):
    """As a viewer counts the pixels of the image: along the columns first in a picture."""
    return MAP.T if image.suffix == ".png" else MAP


def test_a_picture_is_read_row_by_row_and_a_volume_in_the_axes_of_the_image(image, tmp_path):
    assert np.array_equal(read_client_label(png(tmp_path / "l.png", MAP), image, NAMES), MAP)
    for array in (in_file_axes(image), in_file_axes(image)[..., None]):
        assert np.array_equal(read_client_label(nifti(tmp_path / "l.nii.gz", array), image, NAMES), MAP)


def test_what_is_stored_has_the_geometry_of_its_image_and_reads_back(image, tmp_path):
    path = tmp_path / f"stored{served_suffix(image)}"
    write_like(MAP, path, image)
    assert np.array_equal(read_array(path), MAP)
    if image.suffix != ".png":
        stored, reference = nib.load(path), nib.load(image)
        assert stored.shape == reference.shape
        np.testing.assert_allclose(stored.affine, reference.affine)


@pytest.mark.skipif(importlib.util.find_spec("nrrd") is None, reason="pynrrd comes with MONAI Label")
def test_nrrd_is_read_like_nifti(image, tmp_path):
    import nrrd

    nrrd.write(str(tmp_path / "l.nrrd"), np.ascontiguousarray(in_file_axes(image)[..., None]))
    assert np.array_equal(read_client_label(tmp_path / "l.nrrd", image, NAMES), MAP)


def test_segments_are_named_as_3d_slicer_numbers_them_and_values_of_the_table_stay(image, tmp_path):
    swapped = np.array([0, 2, 1] + [0] * 252 + [255], np.uint8)[MAP]
    path = png(tmp_path / "l.png", swapped)
    by_slicer = [{"name": "gcl+ipl", "idx": 1}, {"name": "RNFL", "idx": 2}]
    assert np.array_equal(read_client_label(path, image, NAMES, by_slicer), MAP)
    as_table = [{"name": "RNFL", "idx": 1}, {"name": "GCL+IPL", "idx": 2}]
    assert np.array_equal(read_client_label(png(tmp_path / "l.png", MAP), image, NAMES, as_table), MAP)


@pytest.mark.parametrize(
    ("array", "info", "message"),
    [
        (MAP[:2], (), r"is \(2, 5\), its image \(3, 5\)"),
        (MAP.T.copy(), (), r"is \(5, 3\), its image \(3, 5\)"),
        (np.full(MAP.shape, 3, np.uint8), (), r"holds \[3\]; expected 0 to 2 \(vitreous, RNFL, GCL\+IPL\) or 255"),
        (np.zeros((*MAP.shape, 3), np.uint8), (), "expected one slice with one channel"),
        (MAP, [{"name": "fluid", "idx": 1}], "'label_info' cannot be used"),
        (MAP, [{"idx": 1}], "'label_info' cannot be used"),
        (MAP, [{"name": "RNFL", "idx": 2}], r"numbers its segments \[2\]; expected 1, 2, \.\.\."),
        (MAP, [{"name": "GCL+IPL", "idx": 1}], r"holds \[254\]"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(array, info, message, tmp_path):
    image = png(tmp_path / "image.png", np.zeros(MAP.shape, np.uint8))
    with pytest.raises(ValueError, match=message):
        read_client_label(png(tmp_path / "l.png", array), image, NAMES, info)


def test_fractions_are_no_labels(tmp_path):
    image = nifti(tmp_path / "image.nii.gz", np.zeros(MAP.shape, np.uint8))
    with pytest.raises(ValueError, match="expected whole numbers from 0 to 2"):
        read_client_label(nifti(tmp_path / "l.nii.gz", MAP.astype(np.float32) / 2), image, NAMES)


@pytest.mark.skipif(importlib.util.find_spec("nrrd") is None, reason="pynrrd comes with MONAI Label")
@pytest.mark.parametrize("field", ["data file", "Data File", "datafile"])
def test_a_label_map_that_names_a_file_of_the_server_is_refused(image, tmp_path, field):
    (tmp_path / "secret").write_bytes(bytes(MAP.size))
    sizes = " ".join(map(str, MAP.T.shape))
    header = f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: {sizes}\nencoding: raw\n{field}: {tmp_path}/secret\n\n"
    (tmp_path / "l.nrrd").write_text(header)
    with pytest.raises(ValueError, match="names another file"):
        read_client_label(tmp_path / "l.nrrd", image, NAMES)


@pytest.mark.parametrize("name", ["l.jpg", "l.seg.nrrd", "l.mha", "l"])
def test_formats_that_change_labels_or_are_not_read_are_refused(name, tmp_path):
    image = png(tmp_path / "image.png", np.zeros(MAP.shape, np.uint8))
    with pytest.raises(ValueError, match="has a format that is not read here"):
        read_client_label(tmp_path / name, image, NAMES)


def test_a_suffix_of_two_parts_is_one():
    assert suffix_of("a.b.nii.gz") == ".nii.gz"
    assert (served_suffix("a.nii"), served_suffix("a.jpg")) == (".nii.gz", ".png")
