"""The data set on disk: what is written is read back, what is broken is refused by name."""

import contextlib
import gzip
import json
import os

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImage
from PIL import Image

from described import described_writer
from unicorn_monai.data.checks import check, problems
from unicorn_monai.data.items import balanced_order, datalist, folders_of, image_size, num_labels
from unicorn_monai.data.journal import JOURNAL
from unicorn_monai.data.layout import HEADER, SPLITS, label_names, read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import read_array, read_spacing, write_array
from unicorn_monai.system.errors import NotFinite
from unicorn_monai.system.files import _HOST, write_json

LABELS = {0: "vitreous", 1: "RNFL", 2: "choroid"}


def picture(seed, shape=(12, 8)):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def labelling(seed, shape=(12, 8)):
    label = np.random.default_rng(seed).integers(0, len(LABELS), shape, dtype=np.uint8)
    label[0, 0] = 255  # ignore
    return label


def write(root, n=6, labelled=True, suffix=".nii.gz", shape=(12, 8), **options):
    """A data set of ``n`` images: training, then one of validation, then one of test, each of its own subject."""
    arguments = {"name": "tiny", "device": "Spectralis", "labels": LABELS, "spacing_mm": (0.004, 0.012)} | options
    with described_writer(root, suffix=suffix, **arguments) as writer:
        for i in range(n):
            split = {n - 1: "test", n - 2: "validation"}.get(i, "training")
            label = labelling(i, shape[:2]) if labelled else None
            writer.add(split, picture(i, shape), label, subject=f"s{i:03d}", scan=i)
    return root


def edit(root, change):
    """Apply ``change`` to the header on disk."""
    header = json.loads((root / HEADER).read_text())
    change(header)
    (root / HEADER).write_text(json.dumps(header))


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "set")


# --- round trip ---


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
@pytest.mark.parametrize("shape", [(12, 8), (12, 8, 3), (1, 8), (3, 3, 3)], ids=str)
def test_what_is_written_is_read_back(tmp_path, suffix, shape):
    root = write(tmp_path / "set", suffix=suffix, shape=shape)
    for i, item in enumerate(datalist(root, SPLITS, ("image", "label", "subject"))):
        np.testing.assert_array_equal(read_array(item["image"]), picture(i, shape))
        np.testing.assert_array_equal(read_array(item["label"]), labelling(i, shape[:2]))
        assert read_array(item["image"]).dtype == read_array(item["label"]).dtype == np.uint8
        assert (item["subject"], item["scan"], item["dataset"]) == (f"s{i:03d}", i, str(root))
    assert check(root, need_labels=True) == []


def test_the_header_says_what_was_told(tmp_path):
    root = write(tmp_path / "set", 3, modality="OCT", phantom={"seed": 4})
    header = read_header(root)
    assert {key: header[key] for key in ("name", "modality", "device", "labels", "spacing_mm", "phantom")} == {
        "name": "tiny",
        "modality": "OCT",
        "device": "Spectralis",
        "labels": {"0": "vitreous", "1": "RNFL", "2": "choroid"},
        "spacing_mm": [0.004, 0.012],
        "phantom": {"seed": 4},
    }
    assert [len(header[split]) for split in SPLITS] == [1, 1, 1]
    assert label_names(root) == ["vitreous", "RNFL", "choroid"]


def test_labels_are_ordered_by_value_not_by_text(tmp_path):
    names = [f"layer {i}" for i in range(12)]
    with DatasetWriter(tmp_path, About(name="n", device="d", labels=dict(reversed(list(enumerate(names)))))) as writer:
        writer.add("training", picture(0), picture(0) // 255, subject="a")
    assert label_names(tmp_path) == names


def test_nifti_keeps_the_spacing(tmp_path):
    root = write(tmp_path / "set", 3)
    assert nib.load(root / "images" / "000000.nii.gz").header.get_zooms()[:2] == pytest.approx((0.004, 0.012))
    with DatasetWriter(tmp_path / "own", About(name="n", device="d", labels=LABELS, spacing_mm=(1, 1))) as writer:
        writer.add("training", picture(0), subject="a", spacing_mm=[0.5, 0.25])
    assert nib.load(tmp_path / "own" / "images" / "000000.nii.gz").header.get_zooms()[:2] == (0.5, 0.25)


def test_nothing_but_the_data_set_is_left_in_the_folder(dataset):
    names = {path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file()}
    files = {f"{folder}/{i:06d}.nii.gz" for folder in ("images", "labels") for i in range(6)}
    assert names == files | {HEADER}


def test_monai_reads_the_data_set(dataset):
    items = load_decathlon_datalist(dataset / HEADER, is_segmentation=True, data_list_key="training")
    ours = datalist(dataset, "training", ("image", "label"))
    assert [(item["image"], item["label"]) for item in items] == [(item["image"], item["label"]) for item in ours]
    image = LoadImage(image_only=True)(items[0]["image"])
    np.testing.assert_array_equal(image.numpy(), picture(0))  # rows stay rows
    for split in ("validation", "test"):
        assert len(load_decathlon_datalist(dataset / HEADER, data_list_key=split)) == 1


def test_paths_are_absolute_wherever_the_data_set_is_listed_from(dataset, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    items = datalist("set", "training")
    assert [item["image"] for item in items] == [item["image"] for item in datalist(dataset, "training")]
    assert all(os.path.isabs(item["image"]) for item in items)  # noqa: PTH117 - they are strings, for MONAI


def test_several_sets_and_splits_are_concatenated_in_order(tmp_path, dataset):
    other = write(tmp_path / "other", 3)
    items = datalist([dataset, other], ["training", "validation"], ("image", "label"))
    assert [(item["dataset"], item["scan"]) for item in items] == [
        *((str(dataset), i) for i in range(5)),
        *((str(other), i) for i in range(2)),
    ]
    assert folders_of(items) == [str(dataset), str(other)]
    assert folders_of([{"image": item["image"]} for item in items]) == []


def test_an_image_without_label_is_fine_where_no_label_is_needed(tmp_path):
    root = write(tmp_path / "set", labelled=False)
    assert all("label" not in item for item in datalist(root, SPLITS))
    assert check(root) == []
    assert len(check(root, need_labels=True)) == 6


def test_sets_with_other_labels_may_be_joined_where_no_label_is_needed(tmp_path, dataset):
    other = write(tmp_path / "other", labels={0: "background", 1: "road", 2: "sky"})
    assert len(datalist([dataset, other], "training")) == 8


@pytest.mark.parametrize("shape", [(12, 8), (6, 10, 3)], ids=str)
def test_the_size_of_the_images_is_read_off_the_first(tmp_path, shape):
    assert image_size(write(tmp_path / "set", shape=shape)) == shape[:2]


# --- resuming ---


def interrupted(root, n=4, **options):
    """Write items until there are ``n``, and fail then."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        described_writer(root, name="tiny", device="d", labels=LABELS, **options) as writer,
    ):
        for i in range(len(writer), n):
            writer.add("training", picture(i), labelling(i), subject=f"s{i}", index=i)
        raise KeyboardInterrupt


def resume(root, n=6, **options):
    """Write what is missing of ``n`` items; which ones that was."""
    arguments = {"name": "tiny", "device": "d", "labels": LABELS} | options
    written = []
    with DatasetWriter(root, About(**arguments), resume=True) as writer:
        for i in range(n):
            if i not in writer:
                writer.add("training", picture(i), labelling(i), subject=f"s{i}", index=i)
                written.append(i)
        assert len(writer) == n
    return written


def all_there(root, n=6):
    items = datalist(root, "training", ("image", "label"))
    assert [item["subject"] for item in items] == [f"s{i}" for i in range(n)]
    for i, item in enumerate(items):
        np.testing.assert_array_equal(read_array(item["image"]), picture(i))
        np.testing.assert_array_equal(read_array(item["label"]), labelling(i))
    return not (root / JOURNAL).exists() and not list(root.rglob(".tmp-*"))


def test_an_interrupted_data_set_has_no_header_and_can_be_resumed(tmp_path):
    interrupted(tmp_path)
    assert not (tmp_path / HEADER).exists()
    assert resume(tmp_path) == [4, 5]
    assert all_there(tmp_path)


def test_a_journal_line_torn_by_a_crash_is_written_again(tmp_path):
    interrupted(tmp_path)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    (tmp_path / "images" / f".tmp-{_HOST}-{os.getpid()}-000004.nii.gz").write_bytes(b"half an image")
    assert resume(tmp_path) == [3, 4, 5]
    assert all_there(tmp_path)


@pytest.mark.parametrize("kept", [0, 5])
def test_a_crash_within_the_first_line_of_the_journal_loses_nothing(tmp_path, kept):
    interrupted(tmp_path, 0)
    (tmp_path / JOURNAL).write_bytes((tmp_path / JOURNAL).read_bytes()[:kept])
    assert resume(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert all_there(tmp_path)


def test_a_data_set_can_be_interrupted_more_than_once(tmp_path):
    interrupted(tmp_path, 2)
    for n in (2, 3, 5):
        interrupted(tmp_path, n, resume=True)
    assert resume(tmp_path) == [5]
    assert all_there(tmp_path)


def test_a_finished_data_set_is_resumed_without_losing_an_item(tmp_path):
    assert resume(tmp_path, 4) == [0, 1, 2, 3]
    before = (tmp_path / HEADER).read_bytes()
    assert resume(tmp_path, 4) == []
    assert (tmp_path / HEADER).read_bytes() == before
    assert resume(tmp_path, 6) == [4, 5]
    assert all_there(tmp_path)


def test_more_items_for_a_finished_data_set_survive_an_interruption(tmp_path):
    resume(tmp_path, 3)
    interrupted(tmp_path, 4, resume=True)
    assert len(datalist(tmp_path, "training")) == 3  # as it was
    assert resume(tmp_path) == [4, 5]
    assert all_there(tmp_path)


@pytest.mark.parametrize("finished", [True, False])
def test_a_data_set_is_not_resumed_with_other_labels(tmp_path, finished):
    resume(tmp_path, 2) if finished else interrupted(tmp_path)
    with pytest.raises(ValueError, match="was begun with the labels"):
        resume(tmp_path, labels={0: "vitreous", 1: "RNFL", 2: "OPL"})


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_in_use_is_refused(tmp_path, finished):
    resume(tmp_path, 2) if finished else interrupted(tmp_path)
    with pytest.raises(ValueError, match=r"already holds a data set\. Choose another folder, or remove it first"):
        DatasetWriter(tmp_path, About(name="n", device="d", labels=LABELS))


def test_an_item_is_not_overwritten(tmp_path):
    with DatasetWriter(tmp_path, About(name="n", device="d", labels=LABELS)) as writer:
        writer.add("training", picture(0), subject="a", index=1)
        with pytest.raises(ValueError, match=r"Item 1 of .* is written already"):
            writer.add("training", picture(1), subject="b", index=1)
        writer.add("training", picture(2), subject="c")  # the next free index
    assert [item["subject"] for item in datalist(tmp_path, "training")] == ["a", "c"]
    assert [read_array(item["image"])[0, 0] for item in datalist(tmp_path, "training")] == [
        picture(0)[0, 0],
        picture(2)[0, 0],
    ]


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
def test_a_write_that_fails_leaves_no_file(tmp_path, suffix):
    with pytest.raises((TypeError, ValueError, nib.spatialimages.HeaderDataError)):
        write_array(tmp_path / f"image{suffix}", np.zeros((4, 4), dtype=np.complex256 if suffix == ".png" else object))
    assert list(tmp_path.iterdir()) == []


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    content = {"control": {"curve": [{"mean": 1.0}, {"mean": float("nan")}]}, "n": 2}
    with pytest.raises(NotFinite, match=r"'control::curve::1::mean' of '.*a.json' is nan; expected a finite number"):
        write_json(tmp_path / "a.json", content)
    with pytest.raises(NotFinite, match=r"'0' of '.*' is -inf"):
        write_json(tmp_path / "a.json", [float("-inf")])
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# --- bad input ---


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_SETS = {
    # what is wrong: (what is done to the data set, how it is listed, message)
    "missing folder": (lambda root: root.rename(root.with_name("gone")), {}, r"folder '.*set' does not exist.*prepare"),
    "no dataset.json": (
        lambda root: (root / HEADER).unlink(),
        {},
        r"holds no dataset\.json\. Convert plain images with `unicorn-monai prepare`",
    ),
    "bad JSON": (lambda root: truncate(root / HEADER), {}, "is not valid JSON .*Repair it"),
    "no text": (lambda root: (root / HEADER).write_bytes(b"\xff\xfe\x00"), {}, "is not valid JSON"),
    "a list": (lambda root: (root / HEADER).write_text("[]"), {}, "has no 'labels' table; expected e.g."),
    "no labels": (lambda root: edit(root, lambda h: h.pop("labels")), {}, "has label maps but no 'labels' table"),
    "empty labels": (
        lambda root: edit(root, lambda h: h.update(labels={})),
        {},
        "has label maps but no 'labels' table",
    ),
    "labels as list": (lambda root: edit(root, lambda h: h.update(labels=["a"])), {}, "has no 'labels' table"),
    "gap in labels": (
        lambda root: edit(root, lambda h: h["labels"].pop("1")),
        {},
        r"has the values \['0', '2'\]; expected 0, 1, \.\.\. without gaps",
    ),
    "labels by name": (lambda root: edit(root, lambda h: h.update(labels={"RNFL": "1"})), {}, r"values \['RNFL'\]"),
    "split of paths": (
        lambda root: edit(root, lambda h: h.update(test=["images/000000.nii.gz"])),
        {},
        "'test' of .* is not a list of items; expected e.g.",
    ),
    "split is no list": (
        lambda root: edit(root, lambda h: h.update(test={})),
        {"split": "test"},
        "not a list of items",
    ),
    "label is null": (
        lambda root: edit(root, lambda h: h["training"][0].update(label=None)),
        {},
        "'training' of .* is not a list of items",
    ),
    "unknown split": (lambda root: None, {"split": "train"}, r"Unknown split 'train'; expected one of \['training'"),
    "empty split": (
        lambda root: edit(root, lambda h: h.update(validation=[])),
        {"split": "validation"},
        r"has no items in split 'validation', only in \['training', 'test'\]",
    ),
    "absent split": (
        lambda root: edit(root, lambda h: h.pop("test")),
        {"split": "test"},
        r"has no items in split 'test', only in \['training', 'validation'\]",
    ),
    "missing label key": (
        lambda root: edit(root, lambda h: h["training"][1].pop("label")),
        {},
        r"Item 'images/000001\.nii\.gz' of .* has no 'label', which this stage needs",
    ),
    "relative path out of the folder": (
        lambda root: edit(root, lambda h: h["training"][0].update(image="../other/image.png")),
        {},
        r"'image': '\.\./other/image\.png' of .* leaves the data set folder; refused",
    ),
    "absolute path out of the folder": (
        lambda root: edit(root, lambda h: h["training"][0].update(label="/etc/hostname")),
        {},
        "'label': '/etc/hostname' of .* leaves the data set folder",
    ),
    "link out of the folder": (
        lambda root: (
            (root / "images" / "000000.nii.gz").unlink(),
            (root / "images" / "000000.nii.gz").symlink_to(root.parent / "outside.nii.gz"),
        ),
        {},
        "leaves the data set folder",
    ),
    "missing image": (
        lambda root: (root / "images" / "000002.nii.gz").unlink(),
        {},
        r"images/000002\.nii\.gz', listed as 'image' in .* does not exist",
    ),
    "missing label": (
        lambda root: (root / "labels" / "000002.nii.gz").unlink(),
        {"keys": ("image",)},
        r"labels/000002\.nii\.gz', listed as 'label' in .* does not exist",
    ),
}


@pytest.mark.parametrize(("damage", "listing", "message"), BAD_SETS.values(), ids=BAD_SETS.keys())
def test_a_bad_data_set_is_refused_by_name(dataset, damage, listing, message):
    damage(dataset)
    with pytest.raises(ValueError, match=message):
        datalist(dataset, **({"split": "training", "keys": ("image", "label")} | listing))


@pytest.mark.parametrize("labels", [{}, {"0": "a", "1": "b"}, None], ids=["empty", "of others", "no table"])
def test_labels_mean_nothing_where_no_image_has_a_label_map(tmp_path, dataset, labels):
    with DatasetWriter(tmp_path / "bare", About(name="n", device="d", labels=LABELS)) as writer:
        writer.add("training", picture(7), subject="x")
    assert json.loads((tmp_path / "bare" / HEADER).read_text())["labels"] == {}
    edit(tmp_path / "bare", lambda h: h.update(labels=labels) if labels is not None else h.pop("labels"))
    assert read_header(tmp_path / "bare")["labels"] == {}
    assert label_names(tmp_path / "bare") == []
    assert check(tmp_path / "bare") == []
    with pytest.raises(ValueError, match="has no 'label', which this stage needs"):
        datalist([dataset, tmp_path / "bare"], "training", ("image", "label"))
    with pytest.raises(ValueError, match=r"/bare' has no labels, since none of its images has a label map"):
        num_labels(tmp_path / "bare")


def test_a_data_set_without_label_maps_is_resumed_with_the_labels_it_was_begun_with(tmp_path):
    def write_one(labels, index, label=None):
        with DatasetWriter(tmp_path / "d", About(name="n", device="d", labels=labels), resume=True) as writer:
            if index not in writer:
                writer.add("training", picture(index), label, subject=f"s{index}", index=index)

    write_one(LABELS, 0)
    write_one(LABELS, 0)
    write_one(LABELS, 1, labelling(1))  # now there is one
    assert label_names(tmp_path / "d") == list(LABELS.values())
    with pytest.raises(ValueError, match="was begun with the labels"):
        write_one({0: "other"}, 2)


def test_sets_with_different_label_tables_are_refused(tmp_path, dataset):
    other = write(tmp_path / "other", labels={0: "vitreous", 1: "choroid", 2: "RNFL"})
    with pytest.raises(ValueError, match=r"different label tables: .*'vitreous', 'choroid', 'RNFL'"):
        datalist([dataset, other], "training", ("image", "label"))


BAD_ITEMS = {
    "unknown split": ({"split": "train"}, "Unknown split 'train'"),
    "image of floats": ({"image": picture(0) / 255.0}, r"dtype float64 and shape \(12, 8\); expected uint8"),
    "image of 16 bits": ({"image": picture(0).astype(np.uint16)}, "dtype uint16"),
    "volume": ({"image": picture(0, (12, 8, 5))}, r"shape \(12, 8, 5\); expected uint8, 2D or RGB"),
    "transparent image": ({"image": picture(0, (12, 8, 4))}, r"shape \(12, 8, 4\)"),
    "one number": ({"image": np.uint8(3)}, r"shape \(\)"),
    "label of other shape": ({"label": labelling(0, (8, 12))}, r"Label map has shape \(8, 12\), its image \(12, 8\)"),
    "label with channel": ({"label": labelling(0)[..., None]}, r"Label map has shape \(12, 8, 1\)"),
    "label value outside labels": ({"label": np.full((12, 8), 3, np.uint8)}, r"holds \[3\], which 'labels' does not"),
    "negative label": ({"label": np.full((12, 8), -1)}, r"holds \[-1\]"),
    "label between values": ({"label": np.full((12, 8), 0.5)}, r"holds \[0\.5\]"),
    "label of NaN": ({"label": np.full((12, 8), np.nan)}, r"holds \[nan\]"),
    "label beyond 8 bits": ({"label": np.full((12, 8), 256)}, r"holds \[256\]"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
def test_a_bad_item_is_not_written(tmp_path, change, message):
    item = {"split": "training", "image": picture(0), "label": labelling(0), "subject": "a"} | change
    with DatasetWriter(tmp_path, About(name="n", device="d", labels=LABELS)) as writer:
        with pytest.raises(ValueError, match=message):
            writer.add(**item)
        assert len(writer) == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / HEADER]


def test_labels_with_a_gap_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="without gaps"):
        DatasetWriter(tmp_path / "set", About(name="n", device="d", labels={1: "RNFL", 2: "GCL"}))
    assert not (tmp_path / "set").exists()


def test_a_format_that_would_change_label_values_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.nii\.gz or \.png"):
        write_array(tmp_path / "label.jpg", labelling(0))


BAD_FILES = {
    "truncated NIfTI": (".nii.gz", truncate, "Cannot read .*readable NIfTI or PNG"),
    "truncated PNG": (".png", truncate, "Cannot read"),
    "empty PNG": (".png", lambda path: path.write_bytes(b""), "Cannot read"),
    "no NIfTI": (".nii.gz", lambda path: path.write_bytes(gzip.compress(b"text")), "Cannot read"),
    "volume": (
        ".nii.gz",
        lambda path: nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), path),
        r"shape \(4, 5, 6\); expected \(rows, columns\)",
    ),
}


@pytest.mark.parametrize(("suffix", "damage", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused_by_name(tmp_path, suffix, damage, message):
    path = tmp_path / f"image{suffix}"
    write_array(path, picture(0, (64, 64)))
    damage(path)
    with pytest.raises(ValueError, match=message) as error:
        read_array(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_colour_images_are_read_as_red_green_blue(tmp_path, mode):
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[:2, :, 0] = colours[2:, :, 1] = 255
    Image.fromarray(colours).convert(mode).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_array(tmp_path / "image.png"), colours)


@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 5, 1, 1), (1, 5, 1)])
def test_axes_of_length_one_behind_the_image_are_dropped(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), tmp_path / "image.nii.gz")
    assert read_array(tmp_path / "image.nii.gz").shape == shape[:2]


# --- check ---


def save(root, folder, index, array):
    nib.save(nib.Nifti1Image(array, np.eye(4)), root / folder / f"{index:06d}.nii.gz")


def with_nan(root):
    array = picture(0).astype(np.float32)
    array[3, 4] = np.nan
    save(root, "images", 0, array)


def same_subject(header):
    header["test"][0]["subject"] = "s000"


PROBLEMS = {
    "NaN": (
        with_nan,
        r"^images/000000\.nii\.gz: pixels: found NaN or infinite values; .*Repair or drop",
    ),
    "constant": (
        lambda root: save(root, "images", 1, np.full((12, 8), 7, np.uint8)),
        r"^images/000001\.nii\.gz: pixels: found a constant image \(value 7\)",
    ),
    "sizes differ": (
        lambda root: (save(root, "images", 2, picture(2, (6, 8))), save(root, "labels", 2, labelling(2, (6, 8)))),
        r"^dataset\.json: size: found images that differ in size: .*\(12, 8\).*\(6, 8\)",
    ),
    "subject in two splits": (
        lambda root: edit(root, same_subject),
        r"^dataset\.json: subject: found 's000' in \['test', 'training'\]; expected one split per subject",
    ),
    "no subject": (
        lambda root: edit(root, lambda h: h["training"][0].pop("subject")),
        r"^images/000000\.nii\.gz: subject: found none",
    ),
    "image listed twice": (
        lambda root: edit(root, lambda h: h["test"][0].update(image="images/000000.nii.gz")),
        r"^images/000000\.nii\.gz: image: found the file listed more than once",
    ),
    "label value outside labels": (
        lambda root: save(root, "labels", 1, np.full((12, 8), 9, np.uint8)),
        r"^labels/000001\.nii\.gz: values: found \[9\], which 'labels' does not name",
    ),
    "label of other shape": (
        lambda root: save(root, "labels", 1, labelling(1, (12, 9))),
        r"^labels/000001\.nii\.gz: shape: found shape \(12, 9\); expected that of its image, \(12, 8\)",
    ),
    "truncated image": (
        lambda root: truncate(root / "images" / "000003.nii.gz"),
        r"^images/000003\.nii\.gz: files: found Cannot read '.*000003\.nii\.gz'",
    ),
    "missing label file": (lambda root: (root / "labels" / "000004.nii.gz").unlink(), r"000004.* does not exist"),
    "item without label": (
        lambda root: edit(root, lambda h: h["validation"][0].pop("label")),
        r"Item 'images/000004\.nii\.gz' of .* has no 'label'",
    ),
}


@pytest.mark.parametrize(("damage", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_check_finds_the_one_thing_that_is_wrong(dataset, damage, message):
    assert check(dataset, need_labels=True) == []
    damage(dataset)
    problems = check(dataset, need_labels=True)
    assert len(problems) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(problems[0])


def test_check_finds_everything_at_once(dataset):
    for damage, _ in (PROBLEMS[name] for name in ("NaN", "constant", "subject in two splits", "missing label file")):
        damage(dataset)
    assert len(check(dataset)) == 4


def test_check_of_a_set_without_images_says_so(tmp_path):
    with DatasetWriter(tmp_path, About(name="n", device="d", labels=LABELS)):
        pass
    assert len(check(tmp_path)) == 1
    assert "dataset.json: items: found no images" in check(tmp_path)[0]


def test_check_refuses_what_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"holds no dataset\.json"):
        check(tmp_path)


@pytest.mark.parametrize("spacing", [["a", 0.01], [{}, 0.01], [True, 0.01]])
def test_a_spacing_that_is_no_numbers_is_one_problem(tmp_path, spacing):
    with DatasetWriter(tmp_path, About(name="n", device="d", labels={0: "a"}, spacing_mm=(0.004, 0.01))) as writer:
        for k in range(2):
            image = np.random.default_rng(k).integers(0, 255, (8, 8)).astype(np.uint8)
            writer.add("training", image, subject=f"s{k}")
    header = json.loads((tmp_path / HEADER).read_text())
    header["training"][0]["spacing_mm"] = spacing
    (tmp_path / HEADER).write_text(json.dumps(header))
    (problem,) = [problem for problem in problems(tmp_path) if problem.fatal]
    assert (problem.file, problem.field) == ("images/000000.nii.gz", "spacing_mm")


@pytest.mark.parametrize("kind", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_pixels_that_are_no_numbers_are_refused(tmp_path, kind):
    nib.save(nib.Nifti1Image(np.zeros((8, 8), kind), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"it holds pixels of type .*, expected whole or floating-point numbers"):
        read_array(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("unit", "expected"), [("micron", 0.004), ("mm", 4.0), ("meter", 4000.0), (7, 4.0)])
def test_the_spacing_of_a_file_is_in_millimetres_whatever_its_unit(tmp_path, unit, expected):
    image = nib.Nifti1Image(np.zeros((8, 8), np.uint8), np.diag([4.0, 4.0, 1.0, 1.0]))
    if unit == 7:
        image.header["xyzt_units"] = unit
    else:
        image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_spacing(tmp_path / "a.nii.gz") == pytest.approx((expected, expected))


def test_a_modality_that_is_no_text_is_a_problem(tmp_path):
    write(tmp_path)
    header = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(header | {"modality": [1]}))
    assert any(line.startswith("dataset.json: modality: found [1]") for line in check(tmp_path))


def test_balanced_data_sets_have_the_same_share_and_lose_no_image(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    write(few, n=4), write(many, n=7)
    names = [item["image"] for item in datalist([few, many], "training", balanced=True)]
    assert [sum(str(folder) in name for name in names) for folder in (few, many)] == [5, 5]
    assert set(names) == {item["image"] for item in datalist([few, many], "training")}
    assert datalist(few, "training", balanced=True) == datalist(few, "training")


@pytest.mark.parametrize(("sizes", "order"), [([2, 3], [0, 1, 0, 2, 3, 4]), ([3], [0, 1, 2]), ([1, 1], [0, 1])])
def test_the_smaller_data_sets_begin_anew(sizes, order):
    assert balanced_order(sizes) == order
