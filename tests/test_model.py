"""The face of the package and the examples, on a run of seconds."""

import importlib.util
import inspect
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

import unicorn_monai
from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai import Experiment, Settings, UnIACorN, datalist, image_uncertainty, read_array
from unicorn_monai.bundle import from_bundle
from unicorn_monai.images.pictures import to_uint8

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("face")
    for name, device in (("labeled", "spectralis"), ("unlabeled", "home_oct")):
        write_phantom(root / name, device, n_subjects=6, scans_per_subject=2, size=32, split=(0.5, 0.25, 0.25))
    folders = (str(root / name) for name in ("labeled", "unlabeled", "run"))
    settings = Settings(
        *folders,
        preset="quick",
        device="cpu",
        overrides=TINY,
        count=4,
        modes=("compositional",),
        jobs=1,
        tracking=False,
    )
    Experiment(settings, force=True).run()
    return root / "run"


@pytest.fixture(scope="module")
def model(run) -> UnIACorN:
    return UnIACorN.from_run(run, "cpu")


@pytest.fixture
def maps(model) -> torch.Tensor:
    rows = torch.arange(32).reshape(-1, 1).expand(32, 32) * model.generator.num_labels // 32
    return torch.stack([rows, rows.flip(0), rows])


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_importing_the_package_loads_neither_pytorch_nor_monai_and_offers_every_name():
    code = (
        "import sys, unicorn_monai; assert not {'torch', 'monai', 'numpy'} & sys.modules.keys(); "
        "[getattr(unicorn_monai, name) for name in unicorn_monai.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(unicorn_monai.__all__) == len(set(unicorn_monai.__all__)) <= 24
    with pytest.raises(AttributeError, match="No unicorn_monai attribute Unicorn"):
        _ = unicorn_monai.Unicorn


def test_images_of_integer_maps_are_floats_in_the_unit_interval_of_the_asked_size(model, maps):
    images = model(maps, uncertainty=[0.05, 0.1, 0.22], seeds=[0, 1, 2])
    assert images.shape == (3, 1, 32, 32)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert torch.equal(model(maps.numpy().astype(np.uint8), [0.05, 0.1, 0.22], [0, 1, 2]), images)


def test_a_seed_decides_the_noise_and_an_uncertainty_for_all_is_that_of_each(model, maps):
    same = model(maps, uncertainty=0.1, seeds=[5, 5, 5])
    assert torch.equal(same[0], same[2])  # the same map, seed and uncertainty
    assert not torch.equal(same[0], same[1])
    assert torch.equal(model(maps, uncertainty=[0.1] * 3, seeds=[5, 5, 5]), same)
    assert torch.equal(model(maps), model(maps, seeds=[0, 1, 2]))


def test_the_uncertainty_is_drawn_from_the_prior_by_the_seed_where_none_is_asked_for(model, maps):
    drawn = [float(model.generator.prior.sample([seed])[0]) for seed in (3, 4, 5)]
    assert torch.equal(model(maps, seeds=[3, 4, 5]), model(maps, drawn, [3, 4, 5]))


def test_an_image_is_that_of_the_run_with_its_label_map_seed_and_uncertainty(run, model):
    item = datalist(run / "synthetic", "validation", ("image", "label"))[0]
    made = item["synthetic"]
    label_map = read_array(item["label"]).astype(int)[None]
    image = model(label_map, made["uncertainty"], [made["seed"]])[0]
    difference = np.abs(to_uint8(image).astype(int) - read_array(item["image"]).astype(int))
    assert (difference > 0).mean() < 0.02  # a batch of another size rounds differently
    assert difference.max() <= 1


def test_bundles_alone_do_without_a_run(run, model, maps):
    settings = ConfigParser.load_config_file(run / "bundles" / "synthesis" / "configs" / "inference.json")
    guidance = list(model.generator.inferer.guidance)
    (prior,) = (run / "bundles" / "retinal_unet" / "models").glob("prior*.json")
    alone = UnIACorN.from_bundles(run / "bundles", "cpu", guidance=guidance, prior_path=str(prior))
    assert settings["mode"] == alone.generator.inferer.mode
    weight = float(model.generator.inferer.uncertainty_weight)
    assert torch.equal(alone(maps, 0.1, [0, 1, 2], weight=weight), model(maps, 0.1, [0, 1, 2]))
    with pytest.raises(ValueError, match="is not a bundle"):
        UnIACorN.from_bundles(run / "nothing")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"label_maps": torch.zeros(2, 32, 32)}, r"torch\.float32; expected whole numbers \(n, rows, columns\)"),
        ({"label_maps": torch.zeros(32, 32, dtype=torch.long)}, r"\(32, 32\) of torch\.int64; expected whole"),
        ({"label_maps": torch.zeros(0, 32, 32, dtype=torch.long)}, "and at least one"),
        ({"label_maps": torch.zeros(2, 16, 32, dtype=torch.long)}, r"expected \(n, 32, 32\)"),
        ({"label_maps": torch.full((2, 32, 32), 10)}, "labels from 10 to 10; expected 0 to 9"),
        ({"uncertainty": 1.01}, r"uncertainty is 1\.01; expected u of Eq\. 4, from 0 to 1"),
        ({"uncertainty": [0.1, -0.1, 0.1]}, r"uncertainty is -0\.1"),
        ({"uncertainty": [0.1, math.nan, 0.1]}, "uncertainty is nan"),
        ({"uncertainty": [0.1]}, "uncertainty has 1 entries for 3 label maps"),
        ({"seeds": [1, 2]}, "seeds has 2 entries for 3 label maps"),
        ({"prompts": "an image"}, "trained without words"),
        ({"steps": 0}, "num_inference_steps"),
    ],
)
def test_what_does_not_fit_is_named(model, maps, changed, told):
    with pytest.raises(ValueError, match=told):
        model(**({"label_maps": maps, "seeds": [0, 1, 2]} | changed))


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no folder of a run"):
        UnIACorN.from_run(tmp_path / "none")


def test_every_example_is_short_and_run_here():
    found = {path.stem: path for path in EXAMPLES.glob("*.py")}
    here = inspect.getsource(sys.modules[__name__])
    for name, path in found.items():
        assert f'example("{name}")' in here
        assert len(path.read_text().splitlines()) <= 40


def test_the_example_of_rising_uncertainties(run, tmp_path):
    example("synthesize").main(str(run), str(tmp_path / "rising.png"))
    assert Image.open(tmp_path / "rising.png").size == (4 * 32, 32)


def test_the_example_of_an_uncertainty(run, tmp_path):
    bundle, item = run / "bundles" / "retinal_unet", datalist(run / "synthetic", "training")[0]
    u = example("uncertainty").main(str(bundle), item["image"], str(tmp_path / "entropy.png"))
    pixels = torch.from_numpy(read_array(item["image"])).float()[None, None] / 255
    with torch.no_grad():
        expected = image_uncertainty(from_bundle(bundle, weights="model.pt")(pixels)).item()
    assert u == pytest.approx(expected)
    entropy = np.asarray(Image.open(tmp_path / "entropy.png"))
    assert entropy.shape == (32, 32)
    assert entropy.mean() / 255 == pytest.approx(u, abs=0.005)


def test_the_example_of_the_fused_step_is_the_inferer_to_the_last_bit():
    assert example("fused_step").main() == 0.0
