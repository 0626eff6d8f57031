"""The commands of docs/street_scenes.md for Stable Diffusion and SegFormer, as written there, on tiny stand-ins.

What differs from the document is the size of the images and, in the installed configurations, the length of the
trainings.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs diffusers: make test-street")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-street")
from stable_diffusion_folder import build  # noqa: E402
from tests.data_prep.test_street_sources import ids, make_acdc, make_cityscapes, photo, save  # noqa: E402
from unicorn_monai.data.checks import check  # noqa: E402
from unicorn_monai.data.items import datalist  # noqa: E402
from unicorn_monai.data.layout import WEATHER  # noqa: E402
from unicorn_monai.segmentation.segformer import SegFormer  # noqa: E402
from unicorn_monai.system.weights import read_metadata, sha256  # noqa: E402

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
SMALL = {"depths": [1] * 4, "hidden_sizes": [8, 16, 16, 16], "decoder_hidden_size": 16, "num_attention_heads": [1] * 4}


def commands() -> list[str]:
    text = (ROOT / "docs" / "street_scenes.md").read_text()
    convert = re.search(r"## Cityscapes to ACDC\n.*?```\n(.*?)```", text, re.DOTALL)
    section = re.search(r"## Cityscapes to ACDC with Stable Diffusion.*?(?=\n## )", text, re.DOTALL)
    assert convert
    assert section
    blocks = [convert[1], *re.findall(r"```bash\n(.*?)```", section[0], re.DOTALL)]
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def shorten(configs: Path) -> None:
    """Trainings of one step and few steps of sampling."""
    short = {"max_epochs": 1, "val_interval": 1, "sample_interval": 1, "iterations_per_epoch": 1, "cache_num": 8}
    for path in configs.glob("*.json"):
        config = json.loads(path.read_text())
        steps = {"num_inference_steps": 20} if "num_inference_steps" in config else {}
        path.write_text(json.dumps({k: (short | steps).get(k, v) for k, v in config.items()}))


@pytest.mark.slow
def test_the_commands_run_as_written(tmp_path):
    make_cityscapes(tmp_path / "CITYSCAPES")
    for k in range(2):  # a city more, so that there are two to train and one to validate
        stem = f"train/cologne/cologne_000000_{k:06d}"
        save(tmp_path / "CITYSCAPES" / "leftImg8bit" / f"{stem}_leftImg8bit.png", photo(20 + k))
        save(tmp_path / "CITYSCAPES" / "gtFine" / f"{stem}_gtFine_labelIds.png", ids(20 + k))
    make_acdc(tmp_path / "ACDC")
    build(tmp_path / "stable-diffusion-v1-5")
    torch.manual_seed(0)
    published = SegFormer(19, config=SMALL)
    published.network.decode_head.classifier.weight.data *= 100  # a fresh one is as unsure of every image
    published.save_pretrained(tmp_path / "segformer-b5-cityscapes")
    environment = ENVIRONMENT | {"UNICORN_KEY_FILE": str(tmp_path / "key")}
    for command in commands():
        smaller = command.replace("512 1024", "64 128").replace("[512, 1024]", "[64, 128]")
        run = subprocess.run(
            smaller, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{command}\n{(run.stdout + run.stderr)[-3000:]}"
        if "install(" in command:
            shorten(tmp_path / "streets" / "rgb_2d" / "configs")

    models = tmp_path / "streets" / "rgb_2d"
    unet = sha256(tmp_path / "stable-diffusion-v1-5" / "unet" / "diffusion_pytorch_model.safetensors")
    for part in ("stable_diffusion_uncertainty", "stable_diffusion_semantic"):
        assert read_metadata(models / part / "models" / "model.pt")["unet_sha256"] == unet
        assert list((models / part / "output" / "samples").glob("*.png"))
    for name, weight in (("synthetic", 0.5), ("words_only", 0.0)):
        assert check(tmp_path / "data" / name, need_labels=True) == []
        made = datalist(tmp_path / "data" / name, "training", ("image", "label"))
        assert len(made) == len(datalist(tmp_path / "data" / "cityscapes", "training"))  # one for each label map
        words = [item["synthetic"]["prompt"] for item in made]
        assert words == [f"a photo of a street, {WEATHER[w]}" for w in list(WEATHER)[: len(words)]]
        assert {item["synthetic"]["weight"] for item in made} == {weight}
        assert {item["synthetic"]["models"]["diffusion"] for item in made} == {unet}
    for name in ("before", "both", "words_only"):
        scores = json.loads((tmp_path / "scores" / name / "sub_domains.json").read_text())
        assert set(scores) == set(WEATHER)
    for part, channels in (("semantic", 19), ("uncertainty", 1)):
        net = diffusers.ControlNetModel.from_pretrained(tmp_path / "exported" / part)
        assert net.config.conditioning_channels == channels
    net = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "exported" / "segformer")
    assert net.config.num_labels == 19
