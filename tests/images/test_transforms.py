"""Files become tensors, or are refused by name."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from unicorn_monai.images.files import write_array
from unicorn_monai.images.pictures import to_uint8
from unicorn_monai.images.transforms import FileAxesd, LabelMapd, LoadPixelsd, collate, one_hot, read_image


@pytest.fixture
def item(tmp_path):
    random = np.random.default_rng(0)
    write_array(tmp_path / "image.png", random.integers(0, 255, (6, 4), dtype=np.uint8))
    write_array(tmp_path / "label.nii.gz", random.integers(0, 3, (6, 4), dtype=np.uint8))
    return {"image": str(tmp_path / "image.png"), "label": str(tmp_path / "label.nii.gz")}


def test_an_image_lies_between_0_and_1_and_a_label_map_keeps_its_values(item):
    data = LoadPixelsd(["image", "label"], num_labels=3)(item)
    pixels = np.asarray(Image.open(item["image"]))
    assert data["image"].dtype == torch.float32
    np.testing.assert_allclose(data["image"][0].numpy(), pixels / 255, rtol=1e-6)
    assert data["label"].dtype == torch.int64
    assert np.array_equal(data["label"][0].numpy(), np.asarray(nib.load(item["label"]).dataobj))
    assert (data["image_path"], data["label_path"]) == (item["image"], item["label"])


def test_what_else_an_item_says_does_not_get_into_the_batch(item):
    items = [item | {"subject": "s", "synthetic": {"augment": None}}, item | {"scan": 3}]
    batch = collate([LoadPixelsd(["image", "label"])(i) for i in items])
    assert batch.keys() == {"image", "label", "image_path", "label_path"}
    assert batch["image"].shape == (2, 1, 6, 4)


def test_a_server_keeps_its_request_and_the_geometry_of_the_file(item):
    request = {"image": item["label"], "label": "not read here", "device": "cpu"}
    data = LoadPixelsd(["image"], keep=True)(request)
    assert (data["device"], data["label"]) == ("cpu", "not read here")
    assert np.array_equal(data["image_meta_dict"]["original_affine"], nib.load(item["label"]).affine)
    assert LoadPixelsd(["image"], keep=True)(item)["image_meta_dict"] == {"original_affine": None}


@pytest.mark.parametrize(("path", "transposed"), [("a.png", True), ("a.nii.gz", False)])
def test_a_label_map_goes_to_a_viewer_as_one_slice_in_the_axes_of_the_file(path, transposed):
    logits = torch.randn(3, 6, 4)
    data = LabelMapd(["pred"])({"pred": logits, "image_path": path})
    assert data["pred"].dtype == torch.uint8
    assert torch.equal(data["pred"].long(), logits.argmax(dim=0))
    volume = FileAxesd(["pred"])(data)["pred"]
    plane = data["pred"].numpy()
    assert volume.shape == ((4, 6, 1) if transposed else (6, 4, 1))
    assert np.array_equal(volume[..., 0], plane.T if transposed else plane)


def test_sixteen_bits_use_the_whole_range(tmp_path):
    nib.save(nib.Nifti1Image(np.array([[0, 65535]], np.uint16), np.eye(4)), tmp_path / "image.nii.gz")
    assert read_image(tmp_path / "image.nii.gz").tolist() == [[[0.0, 1.0]]]


def test_colours_come_first(tmp_path):
    write_array(tmp_path / "image.png", np.full((6, 4, 3), (255, 0, 51), np.uint8))
    image = read_image(tmp_path / "image.png", num_channels=3)
    assert image.shape == (3, 6, 4)
    assert image[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    with pytest.raises(ValueError, match=r"has 3 channel\(s\); expected 1"):
        read_image(tmp_path / "image.png")


def test_ignored_pixels_are_allowed_and_unknown_labels_are_not(item):
    write_array(Path(item["label"]), np.array([[255, 3]], np.uint8))
    load = LoadPixelsd(["label"], num_labels=4)
    assert load(item)["label"].tolist() == [[[255, 3]]]
    with pytest.raises(ValueError, match=r"holds values 3 to 3; expected 0 to 2 or 255 \(ignore\)"):
        LoadPixelsd(["label"], num_labels=3)(item)


def test_ignored_pixels_are_zero_in_every_channel():
    label = torch.tensor([[[[0, 2, 255, 1]]]])
    assert one_hot(label, 3)[0, :, 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    assert one_hot(label.to(torch.uint8), 3).dtype == torch.float32


def test_a_label_map_in_three_dimensions_becomes_one_hot():
    label = torch.randint(0, 5, (2, 1, 3, 4, 5))
    assert torch.equal(one_hot(label, 5).argmax(dim=1, keepdim=True), label)


def test_images_become_bytes_and_back():
    values = torch.arange(256).reshape(1, 16, 16)
    assert np.array_equal(to_uint8(values / 255), values[0].numpy())
    assert to_uint8(torch.tensor([[[-1.0, 2.0]]])).tolist() == [[0, 255]]
    assert to_uint8(torch.rand(3, 5, 4)).shape == (5, 4, 3)
