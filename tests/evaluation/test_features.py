"""The feature network as a plug-in: files, sha256, preprocessing; the default that is trained on the images."""

import numpy as np
import pytest
import torch
from monai.networks.nets import AutoencoderKL, UNet
from torch import nn

from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.distribution import kid
from unicorn_monai.evaluation.features import ARCHITECTURE, Encoder, Features, train_encoder
from unicorn_monai.images.transforms import read_image
from unicorn_monai.system.weights import save_weights, sha256

SIZE = 32


class Moments(nn.Module):
    """Mean and largest value of every channel."""

    def forward(self, x, double: bool = False):
        found = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return 2 * found if double else found


@pytest.fixture
def script(tmp_path):
    torch.jit.script(Moments()).save(str(tmp_path / "net.ts"))
    return tmp_path / "net.ts"


def write(root, noise, seed, count=48):
    random = np.random.default_rng(seed)
    with DatasetWriter(root, About(name="x", device="y", labels={0: "a", 1: "b"})) as writer:
        for split in ("training", "test"):
            for i in range(count):
                rows = np.arange(SIZE)[:, None] > random.integers(8, 24) + np.zeros(SIZE)
                image = 60 + 100 * rows + noise * random.standard_normal((SIZE, SIZE))
                writer.add(split, image.clip(0, 255).astype(np.uint8), subject=f"{split}{i // 2}")
    return root


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("domains")
    return [write(root / "labeled", 4, 0), write(root / "unlabeled", 40, 1)]


@pytest.fixture(scope="module")
def trained(domains, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "model.pt"
    return path, train_encoder(domains, path, iterations=100, crop=SIZE)


def test_a_network_from_a_file_carries_its_sha256_and_gets_its_preprocessing(script):
    image = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(1, 1, 2, 2)
    unit = Features.from_file(script, sha256(script), "unit")
    assert unit(image).tolist() == [[0.4375, 1.0]]
    assert unit.sha256 == sha256(script)
    assert unit(image).dtype == torch.float64
    assert Features.from_file(script, sha256(script), "rgb255")(image).tolist() == [[111.75] * 3 + [255.0] * 3]
    assert Features.from_file(script, sha256(script), "imagenet")(image).shape == (1, 6)


def test_arguments_are_passed_on_to_the_network(script):
    features = Features.from_file(script, sha256(script), "unit", arguments={"double": True})
    assert features(torch.ones(1, 1, 2, 2)).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expected_sha256": "0" * 64}, "expected 000.*not opened"),
        ({"path": "absent.ts"}, "No feature network at 'absent.ts'"),
        ({"preprocessing": "magic"}, r"Unknown preprocessing 'magic'.*'imagenet', 'rgb255', 'unit'"),
    ],
)
def test_a_missing_exchanged_or_unknown_network_is_refused(script, change, message):
    arguments = {"path": script, "expected_sha256": sha256(script), "preprocessing": "unit"} | change
    with pytest.raises(ValueError, match=message):
        Features.from_file(**arguments)


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    (tmp_path / "net.ts").write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"net.ts' is no TorchScript file"):
        Features.from_file(tmp_path / "net.ts", sha256(tmp_path / "net.ts"), "unit")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: [x], "gave list"),
        (lambda x: x.mean(), r"gave Tensor \(\) for 2 images"),
        (lambda x: x[:1], r"expected a tensor \(2, D\)"),
        (lambda x: x * float("nan"), "NaN or infinite"),
    ],
)
def test_what_is_no_feature_vector_is_refused(network, message):
    features = Features("f", "0", "unit", network, torch.device("cpu"), {})
    with pytest.raises(ValueError, match=message):
        features(torch.rand(2, 1, 8, 8))


def test_a_network_that_does_not_take_the_images_or_the_arguments_is_named(script):
    features = Features.from_file(script, sha256(script), "unit", arguments={"triple": True})
    with pytest.raises(ValueError, match=r"cannot be run on images \(1, 1, 8, 8\) with preprocessing 'unit' and arg"):
        features(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"'conv' cannot be run on images \(1, 1, 8, 8\).*3 channels"):
        Features("conv", "0", "unit", nn.Conv2d(3, 4, 1), torch.device("cpu"), {})(torch.rand(1, 1, 8, 8))


def test_feature_maps_are_averaged():
    features = Features("f", "0", "unit", lambda x: x, torch.device("cpu"), {})
    image = torch.rand(3, 2, 8, 8)
    torch.testing.assert_close(features(image), image.double().mean(dim=(2, 3)))


def test_the_encoder_is_what_the_unet_computes_on_its_way_down():
    network = UNet(**ARCHITECTURE, in_channels=1, out_channels=1).eval()
    seen = []
    bottom = network.model[1].submodule[1].submodule[1].submodule
    bottom.register_forward_hook(lambda module, inputs, output: seen.append(output))
    image = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        network(image)
        torch.testing.assert_close(Encoder(network)(image), seen[0].mean(dim=(2, 3)))
    assert seen[0].shape == (2, 128, SIZE // 8, SIZE // 8)


def test_the_bottleneck_of_another_network_is_not_guessed():
    with pytest.raises(ValueError, match="Linear is no MONAI UNet"):
        Encoder(nn.Linear(1, 1))


def test_the_trained_encoder_restores_better_than_the_mean_and_tells_the_devices_apart(domains, trained):
    path, error = trained
    images = torch.stack([read_image(item["image"]) for d in domains for item in datalist(d, "training")])
    assert error < 0.9 * (images - images.mean(dim=(2, 3), keepdim=True)).abs().mean()
    features = Features.from_encoder(path)
    halves = [features.of(datalist(d, split)) for d in domains for split in ("training", "test")]
    assert halves[0].shape == (48, 128)
    within = max(kid(halves[0], halves[1])[0], kid(halves[2], halves[3])[0])
    assert min(kid(halves[0], halves[2])[0], kid(halves[1], halves[3])[0]) > max(0.1, 3 * within)


def test_the_same_seed_trains_the_same_network_and_leaves_the_global_generator_alone(domains, tmp_path):
    states = []
    for name in ("a", "b"):
        torch.manual_seed(len(states))
        before = torch.get_rng_state()
        train_encoder(domains, tmp_path / name / "model.pt", iterations=3, crop=16, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(sha256(tmp_path / name / "model.pt"))
    assert states[0] == states[1]


def test_weights_of_something_else_are_refused(tmp_path):
    save_weights(nn.Linear(1, 1), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="was not written by train_encoder"):
        Features.from_encoder(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="No trained weights"):
        Features.from_encoder(tmp_path / "absent.pt")


def test_no_images_or_images_of_two_sizes_are_refused(tmp_path, script):
    features = Features.from_file(script, sha256(script), "unit")
    with pytest.raises(ValueError, match="No images"):
        features.of([])
    with DatasetWriter(tmp_path / "set", About(name="x", device="y", labels={0: "a"})) as writer:
        for size in (8, 16):
            writer.add("test", np.zeros((size, size), np.uint8), subject="s")
    with pytest.raises(ValueError, match="Images differ in size"):
        features.of(datalist(tmp_path / "set", "test"))


def test_images_too_small_to_train_on_are_refused(tmp_path):
    with DatasetWriter(tmp_path / "set", About(name="x", device="y", labels={0: "a"})) as writer:
        writer.add("training", np.zeros((12, 12), np.uint8), subject="s")
    with pytest.raises(ValueError, match="12 pixels are too small"):
        train_encoder([tmp_path / "set"], tmp_path / "model.pt")


def test_an_autoencoder_is_no_unet():
    network = AutoencoderKL(2, 1, 1, (1, 1), (4, 8), (False, False), 3, norm_num_groups=4)
    with pytest.raises(ValueError, match="AutoencoderKL is no MONAI UNet"):
        Encoder(network)
