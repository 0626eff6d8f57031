"""Which label file belongs to which image: by one rule for all sources, and what is not found is told at once."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep import dicom, heidelberg, image_folder, rgb_folder, volumes
from data_prep.privacy import one_form, pseudonym
from oct_files import COLUMNS, ROWS, bscan, label, nifti, opt, picture, save, surface_segmentation, vol
from unicorn_monai.data.layout import SPLITS, read_header

TWO_FORMS = ("M\u00fcller", unicodedata.normalize("NFD", "M\u00fcller"))
FOUR = {"0": "vitreous", "1": "inner", "2": "outer", "3": "choroid"}


def convert(source, root: Path, *options: str, named: bool = True) -> tuple[int, list[dict]]:
    (root.parent / "four.json").write_text(json.dumps(FOUR))
    output, size = root.parent / "out", [64, 64] if source is rgb_folder else [ROWS, COLUMNS]
    arguments = [str(root), str(output), "--split", "1", "0", "0", "--size", *map(str, size)]
    arguments += ["--key-file", str(root.parent / "key"), *options]
    arguments += ["--labels", str(root.parent / "four.json")] if named and "--labels" not in options else []
    status = source.main(arguments)
    header = read_header(output) if status == 0 else {}
    assert status == 0 or not (output / "dataset.json").exists()
    return status, [item for split in SPLITS for item in header.get(split, [])]


def labelled(items: list[dict]) -> int:
    return sum("label" in item for item in items)


@pytest.fixture(params=[image_folder, rgb_folder, volumes], ids=lambda module: module.__name__)
def source(request):
    return request.param


@pytest.fixture
def root(source, tmp_path) -> Path:
    """Two images of two patients each, every one with its label file."""
    for subject in "ab":
        for k in range(2):
            place, seed = f"{subject}/{k}", 2 * "ab".index(subject) + k
            if source is volumes:
                nifti(tmp_path / f"in/images/{place}.nii", bscan(seed).T[..., None])
                nifti(tmp_path / f"in/labels/{place}.nii", label(seed).T[..., None])
            elif source is image_folder:
                picture(tmp_path / f"in/images/{place}.png", bscan(seed))
                picture(tmp_path / f"in/labels/{place}.png", label(seed))
            else:
                colours = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
                picture(tmp_path / f"in/images/{place}.png", colours)
                picture(tmp_path / f"in/labels/{place}.png", np.indices((64, 64))[0].astype(np.uint8) // 16)
    return tmp_path / "in"


def rename(root: Path, pattern: str, new) -> None:
    for path in sorted(root.glob(pattern)):
        path.rename(new(path))


def test_suffixes_in_upper_case_are_found(source, root):
    rename(root, "labels/*/*", lambda path: path.with_suffix(path.suffix.upper()))
    assert labelled(convert(source, root)[1]) == 4


def test_folders_in_upper_case_are_found(source, root):
    rename(root, "*", lambda path: path.with_name(path.name.title()))
    status, items = convert(source, root)
    assert (status, len(items), labelled(items)) == (0, 4, 4)


def test_names_in_two_unicode_forms_are_one(source, root):
    for kind, name in zip(("images", "labels"), TWO_FORMS, strict=True):
        (root / kind / "a").rename(root / kind / name)
    assert labelled(convert(source, root)[1]) == 4


def test_other_endings_are_told_with_what_may_have_been_meant(source, root, capsys):
    rename(root, "labels/b/*", lambda path: path.with_stem(f"{path.stem}_mask"))
    status, items = convert(source, root)
    assert (status, labelled(items)) == (0, 2)
    told = capsys.readouterr().out
    assert "note: no label file for 2 of 4 images, 'images/b/0." in told
    assert "looked for 'labels/b/0'" in told
    assert "2 files there belong to no image: 'labels/b/0_mask." in told


@pytest.mark.parametrize("suffix", [".gif", ".npy", ".webp"])
def test_files_of_other_kinds_are_told(source, root, capsys, suffix):
    rename(root, "labels/a/*", lambda path: path.with_suffix(suffix))
    assert labelled(convert(source, root)[1]) == 2
    assert f"2 files there belong to no image: 'labels/a/0{suffix}', 'labels/a/1{suffix}'" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["masks", "label", "segmentation of a friend"])
def test_another_folder_is_named_before_anything_is_written(source, root, capsys, name):
    (root / "labels").rename(root / name)
    assert convert(source, root)[0] == 1
    told = capsys.readouterr().err
    assert "label: found no label file for any of the 4 images" in told
    assert f"There is no folder 'labels'. 4 such files lie in '{name}' instead" in told


def test_labels_without_an_image_are_told(source, root, capsys):
    next((root / "images/b").iterdir()).unlink()
    assert labelled(convert(source, root)[1]) == 3
    assert "note: 1 label files belong to no image: 'labels/b/" in capsys.readouterr().out


def test_images_without_any_labels_need_no_table_and_no_word(source, root, capsys):
    for path in (root / "labels").rglob("*.*"):
        path.unlink()
    rename(root, "labels", lambda path: root.parent / "away")
    assert convert(source, root, named=False)[0] == 0
    assert "label file" not in capsys.readouterr().out
    shutil.rmtree(root.parent / "out")
    assert convert(source, root)[0] == 0
    assert "no label file for 4 of 4 images" in capsys.readouterr().out


@pytest.mark.parametrize("names", [(TWO_FORMS[0], TWO_FORMS[1]), ("0", "0")], ids=["Unicode", "stem"])
def test_two_images_for_one_label_file_are_refused_by_name(source, root, capsys, names):
    twin = {".png": ".bmp", ".nii": ".nii.gz"}
    image = next((root / "images/a").glob("0.*"))
    content = nib.load(image) if source is volumes else image.read_bytes()
    for k, name in enumerate(names):
        path = image.with_name(name + (twin[image.suffix] if k and names == ("0", "0") else image.suffix))
        nib.save(content, path) if source is volumes else path.write_bytes(content)
    if names != ("0", "0"):
        image.unlink()
        rename(root, "labels/a/0.*", lambda path: path.with_stem(names[0]))
    assert convert(source, root)[0] == 1
    assert "would belong to 2 images, 'images/a/" in capsys.readouterr().err


def test_two_label_files_of_one_image_leave_it_out(source, root, capsys):
    path = next((root / "labels/a").glob("0.*"))
    path.with_suffix(".mha" if source is volumes else ".tif").write_bytes(path.read_bytes())
    assert len(convert(source, root)[1]) == 3
    assert "label: found ['0." in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["labels", "a/masks"])
def test_label_images_are_not_taken_for_images(source, root, capsys, folder):
    """Folders of labels where nothing says which images they belong to."""
    (root / "labels").rename(root.parent / "labels")
    (root / "images").rename(root.parent / "moved")
    for name in ("a", "b"):
        (root.parent / "moved" / name).rename(root / name)
    (root.parent / "labels/a").rename(root / folder)
    assert convert(source, root, named=False)[0] == 1
    assert "would be taken for an image, but lies in a folder" in capsys.readouterr().err


def test_labels_that_are_found_later_are_no_continuation(source, root, capsys):
    rename(root, "labels/b/*", lambda path: path.with_stem(f"{path.stem}_x"))
    assert convert(source, root)[0] == 0
    rename(root, "labels/b/*", lambda path: path.with_stem(path.stem[0]))
    assert source.main([str(root), str(root.parent / "out"), "--split", "1", "0", "0", "--resume"]) == 1


def test_surfaces_of_a_folder_are_found_whatever_form_its_name_has(tmp_path):
    picture(tmp_path / f"in/images/{TWO_FORMS[0]}/0.png", bscan(0))
    heights = "".join(f"<y>{20 + k / 8}</y>" for k in range(COLUMNS))
    size = f"<surface_size><x>{COLUMNS}</x><z>1</z></surface_size>"
    (tmp_path / "in/labels").mkdir()
    text = f"<surfaces>{size}<surface><name>ILM</name><bscan>{heights}</bscan></surface></surfaces>"
    (tmp_path / f"in/labels/{TWO_FORMS[1]}.XML").write_text(text)
    (tmp_path / "two.json").write_text(json.dumps({"labels": {"0": "above", "1": "below"}, "surfaces": ["ILM"]}))
    assert labelled(convert(image_folder, tmp_path / "in", "--labels", str(tmp_path / "two.json"))[1]) == 1


def test_a_pattern_of_label_volumes_is_looked_up_by_the_same_rule(tmp_path, capsys):
    for k in range(3):
        nifti(tmp_path / f"in/imagesTr/case_{k}_0000.nii.gz", bscan(k).T[..., None])
    nifti(tmp_path / "in/labelsTr/case_0.NII.GZ", label(0).T[..., None])
    nifti(tmp_path / "in/labelsTr/case_1_seg.nii.gz", label(1).T[..., None])
    options = ["--images", "imagesTr/*_0000.nii.gz", "--subject-pattern", r"(case_\d+)", "--label"]
    status, items = convert(volumes, tmp_path / "in", *options, "labelsTr/{case}.nii.gz")
    assert (status, len(items), labelled(items)) == (0, 3, 1)
    told = capsys.readouterr().out
    assert "no label file for 2 of 3 images, 'imagesTr/case_1_0000.nii.gz'" in told
    assert "looked for 'labelsTr/case_1.nii.gz'. 1 files there belong to no image: 'labelsTr/case_1_seg.nii.gz'" in told
    status = volumes.main([str(tmp_path / "in"), str(tmp_path / "2"), *options, "labels/{case}.nii.gz"])
    assert (status, "no label file for any of the 3 images" in capsys.readouterr().err) == (1, True)
    shared = ["labelsTr/case_0.nii.gz", "--labels", str(tmp_path / "four.json")]
    assert volumes.main([str(tmp_path / "in"), str(tmp_path / "2"), *options, *shared]) == 1
    assert "'labelsTr/case_0.NII.GZ' would belong to 3 images" in capsys.readouterr().err


# ---------------------------------------------------------------- sources that look for no files


def test_label_objects_of_other_images_are_told(tmp_path, capsys):
    first, other = opt(), opt()
    (tmp_path / "in").mkdir()
    save(first, tmp_path / "in/a.dcm")
    save(surface_segmentation(other), tmp_path / "in/s.dcm")
    assert convert(dicom, tmp_path / "in", named=False)[0] == 1
    assert "refer to 1 images by their SOPInstanceUID, of which INPUT holds none" in capsys.readouterr().err
    save(surface_segmentation(first), tmp_path / "in/t.dcm")
    status, items = convert(dicom, tmp_path / "in", named=False)
    assert (status, labelled(items)) == (0, 3)
    assert "note: label objects refer to 1 of 2 images that INPUT does not hold" in capsys.readouterr().out


def test_frames_without_labels_are_counted(tmp_path, capsys):
    first, other = opt(), opt(array=np.stack([bscan(k) for k in (7, 8, 9)]))
    (tmp_path / "in").mkdir()
    save(first, tmp_path / "in/a.dcm")
    save(other, tmp_path / "in/b.dcm")
    save(surface_segmentation(first), tmp_path / "in/s.dcm")
    assert labelled(convert(dicom, tmp_path / "in", named=False)[1]) == 3
    assert "note: no labels for 3 of 6 images: 'b.dcm, B-scan 0', 'b.dcm, B-scan 1'" in capsys.readouterr().out


def test_exports_without_layers_are_counted_where_labels_are_asked_for(tmp_path, capsys):
    pytest.importorskip("eyepy", reason="eyepy reads Heidelberg's exports: pip install 'unicorn-monai[heidelberg]'")
    vol(tmp_path / "in/a.vol", layers=0)
    assert convert(heidelberg, tmp_path / "in", "--labels", "paper")[0] == 0
    assert "no labels for 2 of 2 images: 'a.vol, B-scan 0', 'a.vol, B-scan 1'" in capsys.readouterr().out


# ---------------------------------------------------------------- one person


def test_a_name_in_two_unicode_forms_is_one_person(tmp_path):
    for k, name in enumerate(TWO_FORMS):
        picture(tmp_path / f"in/images/{name}/{k}.png", bscan(k))
    items = convert(image_folder, tmp_path / "in", named=False)[1]
    assert (len(items), len({item["subject"] for item in items})) == (2, 1)
    more = ["--subject-pattern", f"({TWO_FORMS[1]})", "--keep-original-ids"]
    assert image_folder.main([str(tmp_path / "in"), str(tmp_path / "2"), "--split", "1", "0", "0", *more]) == 0
    assert {item["subject"] for item in read_header(tmp_path / "2")["training"]} == {TWO_FORMS[0]}


def test_pseudonyms_of_plain_names_are_what_they_were():
    assert pseudonym("patient 1", bytes(32)) == "s734793907d34"
    assert pseudonym(TWO_FORMS[0], bytes(32)) == pseudonym(TWO_FORMS[1], bytes(32))
    assert one_form("abc 1") == "abc 1"
