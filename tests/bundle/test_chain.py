"""What a bundle refuses in seconds; with the bundles themselves in `test_bundles.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from pydoc import locate
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from unicorn_monai.bundle.chain import check_chain, check_labels, trained_on
from unicorn_monai.bundle.installation import BUNDLES, bundle_root, configured, install, load_config
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.bundle.settings import CHOICES, RULES, check_device, check_settings, refuse_unknown_options
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.system.errors import root_cause
from unicorn_monai.system.weights import save_weights
from unicorn_monai.training.settings import (
    AutoencoderSettings,
    DiffusionSettings,
    TrainingSettings,
    TranslationSettings,
)

ROOT = Path(__file__).parents[2]
ENDING = {"_target_": "unicorn_monai.system.end_in_one_sentence"}  # even the checks' errors
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def configs_of(bundle: str) -> list[Path]:
    return sorted((Path(bundle_root(bundle)) / "configs").glob("*.json"))


def configs() -> list[Path]:
    return [
        path
        for bundle in BUNDLES
        if bundle != "rgb_2d"  # which has those of latent_diffusion
        for path in configs_of(bundle)
        if path.name not in ("metadata.json", "layout_supervision.json")  # the second only adds to train.json
        and not path.name.startswith("multi_gpu")
    ]


def name(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.name}"


@pytest.mark.parametrize("path", configs(), ids=name)
def test_every_configuration_checks_its_own_settings_first(path):
    config, checked = configured(path.parents[1].name, file=path.name), set()
    first = [ENDING, "@settings" if "settings" in config else "@checks"]
    if "settings" in config:
        assert issubclass(locate(config["settings"]["_target_"]), TrainingSettings)
        assert {k: v for k, v in config["settings"].items() if v != f"@{k}"}.keys() == {"_target_"}
        checked |= config["settings"].keys()
    if config.get("checks", [{}])[0].get("_target_") == "unicorn_monai.bundle.check_settings":
        first += [] if "@checks" in first else ["@checks"]
        assert {k: v for k, v in config["checks"][0].items() if v != f"@{k}"}.keys() == {"_target_"}
        checked |= config["checks"][0].keys()
    if "trained_on" in config:  # which reads the descriptions of weights
        first += ["@trained_on"] if "@checks" in first else ["@checks", "@trained_on"]
    assert config["initialize"][: len(first)] == first
    own = {key for key in config if key in RULES.keys() | CHOICES.keys()}
    assert own <= checked, "a setting that has a rule is checked"
    parallel = path.with_name(f"multi_gpu_{path.name}")
    if parallel.is_file():
        assert json.loads(parallel.read_text())["initialize"][: len(first)] == first


@pytest.mark.parametrize("kind", [DiffusionSettings, AutoencoderSettings, TranslationSettings])
def test_every_setting_of_a_training_that_has_a_rule_is_refused_where_it_is_wrong(kind):
    wrong = dict.fromkeys(RULES, "wrong") | dict.fromkeys(CHOICES, "wrong")
    names = {one.name for one in fields(kind)} - {"device", "output_dir", "ckpt_dir"}
    assert names <= wrong.keys()
    for setting in names:
        with pytest.raises(ValueError, match=rf"^(Unknown {setting} 'wrong'|{setting} is 'wrong'); expected"):
            kind(**{setting: "wrong"})
    with pytest.raises(ValueError, match="device is 'wrong'; expected cpu, cuda or cuda:0"):
        kind(device="wrong")


TRAININGS = [(bundle, path.name) for bundle in BUNDLES for path in configs_of(bundle) if path.name.startswith("train")]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """All bundles, side by side, without any weights."""
    folder = tmp_path_factory.mktemp("untrained")
    for bundle in BUNDLES:
        install(bundle, folder)
    return folder


@pytest.mark.parametrize(("bundle", "file"), TRAININGS)
def test_a_wrong_setting_is_refused_before_data_or_weights_are_missed(untrained, bundle, file):
    path, config = untrained / bundle / "configs" / file, load_config(untrained / bundle, file)
    places = {key: str(untrained / "nowhere") for key in ("dataset_dir", "unlabeled_dir") if key in config}
    for setting in sorted(config.keys() & (RULES | CHOICES)):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            run_bundle(path, "train", device="cpu", **places, **{setting: "wrong"})
        assert re.match(rf"(Unknown {setting} 'wrong'|{setting} is 'wrong'); expected", str(root_cause(caught.value)))
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run_bundle(path, "train", device="cpu", **places, max_epoch=3)
    assert "has no entry 'max_epoch'" in str(root_cause(caught.value))
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run_bundle(path, "train", device="wrong", **places)
    assert "device is 'wrong'; expected cpu, cuda or cuda:0" in str(root_cause(caught.value))


def test_a_mode_that_is_unknown_is_refused_before_any_weights_are_read(tmp_path):
    with pytest.raises(ValueError, match="Unknown mode 'papr'; expected one of"):
        trained_on(tmp_path / "nowhere", tmp_path / "nowhere", "papr")


def test_in_paper_mode_a_weight_is_a_share():
    check_settings(mode="paper", uncertainty_weight=1.0)
    check_settings(mode="compositional", uncertainty_weight=2.0)
    with pytest.raises(ValueError, match=r"uncertainty_weight is 1.5; the mode 'paper' weighs by \(1 - w, w\)"):
        check_settings(mode="paper", uncertainty_weight=1.5)


def test_settings_without_a_rule_are_a_mistake_of_the_configuration():
    with pytest.raises(ValueError, match="There is no rule for 'max_epoch'; expected some of"):
        check_settings(max_epoch=3)
    check_settings(device="cpu", max_epochs=3, precision="float32", split=["training"], count=None)


# ---------------------------------------------------------------- options of the shell

CONFIG = str(Path(bundle_root("retinal_unet")) / "configs" / "train.json")
PARALLEL = str(Path(CONFIG).with_name("multi_gpu_train.json"))


@pytest.mark.parametrize(
    "options",
    [
        "--max_epochs 3 --dataset_dir x",
        "--max_epochs=3",
        "--train::trainer::max_epochs 3",
        "--train#trainer#max_epochs 3",
        "--tracking mlflow --run_name mine --experiment_name e --tracking_uri sqlite:///x.db",
        "--meta_file m.json --logging_file l.conf --run_id run",
        "--train::handlers::1::interval 2 --train::handlers::0::_disabled_ True",
        "--seed -1",
        "--_meta_::version 2",
    ],
)
def test_options_that_exist_pass(options):
    refuse_unknown_options(["--config_file", CONFIG, *options.split()])
    refuse_unknown_options([f"--config_file={[CONFIG, PARALLEL]}", *options.split()])


@pytest.mark.parametrize(
    ("options", "entry"),
    [
        ("--max_epoch 3", "max_epoch"),
        ("--maxepochs=3", "maxepochs"),
        ("--Batch_size 3", "Batch_size"),
        ("--datasetdir x", "datasetdir"),
        ("--train::trainer::max_epoch 3", "train::trainer::max_epoch"),
        ("--train#trainer#max_epoch 3", "train::trainer::max_epoch"),
        ("--trian::trainer::max_epochs 3", "trian::trainer::max_epochs"),
        ("--train::handlers::99::interval 3", "train::handlers::99::interval"),
        ("--network_def::channels [4]", "network_def::channels"),
        ("--run_name mine", "run_name"),
        ("--parallel_network x", "parallel_network"),
        ("--epochs 1 --max_epochs 2", "epochs"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, entry):
    with pytest.raises(ValueError, match=f"has no entry '{entry}'.*Check the spelling"):
        refuse_unknown_options(["--config_file", CONFIG, *options.split()])


def test_options_in_a_file_are_refused_too(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"config_file": CONFIG, "max_epoch": 3}))
    with pytest.raises(ValueError, match="has no entry 'max_epoch'"):
        refuse_unknown_options(["--args_file", str(tmp_path / "args.json")])


def test_other_processes_are_not_looked_at():
    refuse_unknown_options()  # this one is pytest


def test_the_shell_refuses_a_misspelt_option_before_anything_is_read(tmp_path):
    root = install("retinal_unet", tmp_path, "small")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(root / "configs" / "train.json")]
    command += ["--dataset_dir", "nowhere", "--max_epoch", "3"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no entry 'max_epoch' to set. Check the spelling." in done.stderr
    assert not (root / "models").exists()


# ---------------------------------------------------------------- labels and weights


def test_another_number_of_labels_is_refused(tmp_path):
    for count in (2, 3):
        with DatasetWriter(
            tmp_path / str(count), About(name="n", device="d", labels={i: "abc"[i] for i in range(count)})
        ) as writer:
            writer.add("training", *np.eye(2, dtype=np.uint8)[None].repeat(2, 0), subject="s")
    check_labels([tmp_path / "2", [tmp_path / "2"]], 2)
    with pytest.raises(ValueError, match=r"/3' has 3 labels \(a, b, c\), the configuration num_labels 2"):
        check_labels([tmp_path / "2", tmp_path / "3"], 2)


PRIOR = UncertaintyPrior(0.2, 0.05, "zscore", 0.12, 0.09, "a" * 64)


@pytest.fixture
def chain(tmp_path) -> dict[str, Path]:
    """Weights that belong together."""
    folders = {name: tmp_path / name for name in ("latent_diffusion", "uncertainty_controlnet", "semantic_controlnet")}
    models = {name: folder / "models" / "model.pt" for name, folder in folders.items()}
    autoencoder = folders["latent_diffusion"] / "models" / "autoencoder.pt"
    save_weights(nn.Linear(1, 1), autoencoder)
    from unicorn_monai.system.weights import sha256

    belongs = {"prediction_type": "v_prediction", "scale_factor": 0.5, "autoencoder_sha256": sha256(autoencoder)}
    save_weights(nn.Linear(2, 1), models["latent_diffusion"], **belongs)
    style = trained_on(folders["latent_diffusion"], prior=PRIOR)
    save_weights(nn.Linear(3, 1), models["uncertainty_controlnet"], **style)
    both = trained_on(folders["latent_diffusion"], folders["uncertainty_controlnet"], "compositional")
    save_weights(nn.Linear(4, 1), models["semantic_controlnet"], **both)
    return folders


def test_weights_that_belong_together_pass(chain):
    scheduler = SimpleNamespace(prediction_type="v_prediction")
    check_chain(**chain, mode="compositional", scheduler=scheduler, scale_factor=0.5, prior=PRIOR)
    check_chain(**chain, mode="compositional", prior=replace(PRIOR, offset=0.12 + 1e-7, mean=0.3, std=0.1))
    check_chain(chain["latent_diffusion"])
    assert "base_sha256" not in trained_on(chain["latent_diffusion"], chain["uncertainty_controlnet"], "paper")


@pytest.mark.parametrize(
    ("exchanged", "message"),
    [
        ("latent_diffusion/models/autoencoder.pt", r"The diffusion model of .* was trained with autoencoder_sha256"),
        ("latent_diffusion/models/model.pt", r"uncertainty_controlnet' was trained with unet_sha256"),
        ("uncertainty_controlnet/models/model.pt", r"semantic_controlnet' was trained with base_sha256"),
    ],
)
def test_exchanged_weights_are_refused(chain, exchanged, message):
    path = chain["latent_diffusion"].parent / exchanged
    save_weights(nn.Linear(9, 9), path)
    with pytest.raises(ValueError, match=message + r" \w{12}\.\.\., in use is \w{12}\.\.\.\. Use what it was trained"):
        check_chain(**chain, mode="compositional")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "paper"}, "trained with mode 'compositional', in use is 'paper'"),
        (
            {"scheduler": SimpleNamespace(prediction_type="epsilon")},
            "prediction_type 'v_prediction', in use is",
        ),
        ({"scale_factor": 0.7}, "scale_factor 0.5, in use is 0.7"),
    ],
)
def test_other_settings_than_those_of_the_training_are_refused(chain, change, message):
    with pytest.raises(ValueError, match=message):
        check_chain(**(chain | {"mode": "compositional"} | change))


def test_weights_that_tell_nothing_pass(chain, caplog):
    for name in ("uncertainty_controlnet", "semantic_controlnet"):
        save_weights(nn.Linear(5, 1), chain[name] / "models" / "model.pt")
    check_chain(**chain, mode="paper", prior=PRIOR)
    assert "was trained before weights told the scaling of their hint" in caplog.text


LEVELS = tuple(i / 64 for i in range(65))
ANOTHER_HINT = {
    "scaling": ({"scaling": "paper", "offset": 0.0, "scale": 1.0}, "scaling 'zscore', in use is 'paper'"),
    "measured on other images": ({"offset": 0.13}, "offset 0.12, in use is 0.13"),
    "spread of other images": ({"scale": 0.08}, "scale 0.09, in use is 0.08"),
    "another network": ({"segmentation_sha256": "b" * 64}, r"segmentation_sha256 a{12}\.\.\., in use is b{12}"),
    "another measure": ({"acquisition": "margin"}, "acquisition 'entropy', in use is 'margin'"),
    "quantiles": ({"both_quantiles": LEVELS}, r"both_quantiles \[\], in use is \[0.0, "),
}


@pytest.mark.parametrize("case", ANOTHER_HINT)
def test_another_hint_than_that_of_the_training_is_refused(chain, case):
    change, message = ANOTHER_HINT[case]
    message = (
        rf"uncertainty_controlnet'.* was trained with {message}.*Give the prior it was trained with \(prior_path\),"
    )
    for mode, parts in (("compositional", chain), (None, {k: chain[k] for k in list(chain)[:2]})):
        with pytest.raises(ValueError, match=message):
            check_chain(**parts, mode=mode, prior=replace(PRIOR, **change))


def test_the_paper_s_semantic_net_is_trained_whatever_the_hint_of_the_other_but_not_used_with_another(chain):
    parts = {key: chain[key] for key in ("latent_diffusion", "uncertainty_controlnet")}
    plain = replace(PRIOR, scaling="paper", offset=0.0, scale=1.0)
    check_chain(**parts, mode="paper", prior=plain)
    alone = trained_on(chain["latent_diffusion"], mode="paper")
    save_weights(nn.Linear(4, 1), chain["semantic_controlnet"] / "models" / "model.pt", **alone)
    with pytest.raises(ValueError, match="scaling 'zscore', in use is 'paper'"):
        check_chain(**chain, mode="paper", prior=plain)


@pytest.mark.parametrize("device", ["meta", "xla", "hpu:0"])
def test_a_device_that_holds_no_numbers_or_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=r"expected cpu, cuda"):
        check_device(device)
