"""Settings, headers and paths are data: what a bundle runs, calls and refers to is its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import CliRunner
from tiny_networks import TINY
from unicorn_monai.bundle.expressions import changed_wiring, require_literal, wiring
from unicorn_monai.bundle.installation import GENERATOR, bundle_root, install, load_config
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.bundle.run_bundles import require_own_bundles
from unicorn_monai.bundle.settings import check_overrides, refuse_unknown_options
from unicorn_monai.cli import app
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.experiment.settings import Settings, measured_places, settings_of

CALL = {"_target_": "os.system", "command": "touch witness"}
PLACES = {"labeled": "a", "unlabeled": "b", "output": "c"}
TRANSFORM = "augmenting"


def test_what_is_data_and_what_is_not():
    config = {
        "a": 1,
        "b": ["x", "$1 + 1", {"_target_": "c", "d": "@a"}],
        "e": {"_mode_": "debug", "g::h": 2},
        "f": " $",
    }
    assert wiring(config) == {
        "b::1": "$1 + 1",
        "b::2": ["_target_", "d"],
        "b::2::_target_": "c",
        "b::2::d": "@a",
        "e::_mode_": "debug",
        "e::g::h": {"g::h": 2},
    }
    assert changed_wiring(config, config | {"a": 2, "f": [{"k": "v"}]}) == []
    assert changed_wiring(config, config | {"a": "%other.json"}) == ["a"]


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("train.json", f"{TRANSFORM}::_target_", "ctypes.CDLL"),
        ("train.json", "network::_target_", "os.system"),
        ("train.json", "network", CALL),
        ("train.json", "network", {"a": CALL}),
        ("train.json", "network", {"network": 1}),
        ("train.json", "train::preprocessing::transforms", [CALL]),
        ("train.json", "train::preprocessing::transforms", []),
        ("train.json", "train::preprocessing::transforms::-1::_target_", "os.system"),
        ("train.json", "train::preprocessing::transforms::²::_target_", "os.system"),
        ("train.json", "train#preprocessing#transforms#2#_target_", "os.system"),
        ("train.json", "+train::handlers", [CALL]),
        ("train.json", "+initialize", ["$1"]),
        ("train.json", "initialize", ["$__import__('os').system('touch witness')"]),
        ("train.json", "initialize::0", "@network"),
        ("train.json", "checks", []),
        ("train.json", "checks", None),
        ("train.json", "ckpt_dir", "/somewhere/else"),
        ("train.json", "output_dir", "%/etc/hostname"),
        ("train.json", "bundle_root", "elsewhere"),
        ("train.json", "seed", "@network"),
        ("train.json", "seed", "@seed"),
        ("train.json", "seed", "@nothing"),
        ("train.json", "seed", "@::network"),
        ("train.json", "seed", "@#network"),
        ("inference.json", "network_def::act", ["PRELU", {"_mode_": "debug"}]),
        ("inference.json", "network_def::act", ["PRELU", {"a::_target_": "os.system"}]),
        ("inference.json", "network_def::act", "a#b"),
        ("inference.json", "network_def::strides", 2),
        ("inference.json", "dataloader::collate_fn::_mode_", "debug"),
        ("metadata.json", "version", "$import os"),
    ],
)
def test_an_override_changes_data_only(file, key, value):
    overrides = {"retinal_unet": {file: {key: value}}}
    with pytest.raises(
        ValueError, match=r"runs or refers to|run as code|no entry|reads '#' as|expected a list|bundle_"
    ):
        check_overrides(overrides, lambda bundle: ["small"])
    with pytest.raises(ValueError, match=r"overrides|no entry"):
        Settings.from_dict(PLACES | {"overrides": overrides})


@pytest.mark.parametrize("key", ["_requires_", "_disabled_", "_desc_", "_mode_"])
def test_an_override_gives_no_component_a_special_entry(key):
    for changes in ({f"network_def::{key}": "@device"}, {"network_def": {"_target_": "UNet", key: True}}):
        with pytest.raises(ValueError, match=r"no entry|run as code"):
            check_overrides({"retinal_unet": {"inference.json": changes}})


def test_data_may_be_changed():
    check_overrides(TINY, lambda bundle: ["small"])
    check_overrides({"latent_diffusion": {"train_diffusion.json": {"sample_interval": "@val_interval"}}})
    check_overrides({"retinal_unet": {"inference.json": {"network_def::act": ["PRELU", {"init": 0.1}]}}})
    check_overrides({"retinal_unet": {"uncertainty.json": {"split": "training"}}})
    check_overrides({"synthesis": {"inference.json": {"num_inference_steps": 5}}})  # in place of a reference


# ---------------------------------------------------------------- runs of other people


@pytest.fixture
def run(tmp_path) -> Path:
    settings = Settings("a", "b", str(tmp_path / "run"), preset="quick", overrides=TINY)
    places = measured_places(settings.main, settings.scaling_of(settings.main))
    for name in GENERATOR:
        own = {k: dict(v) for k, v in TINY.get(name, {}).items()}
        if name not in ("retinal_unet", "latent_diffusion"):
            own["inference.json"] = own.get("inference.json", {}) | {"prior_path": places["prior_path"]}
        if name == "joint":
            own["train.json"] |= places
        install(name, tmp_path / "run" / "bundles", "small", own)
    (tmp_path / "run" / "experiment.json").write_text(json.dumps({"settings": vars(settings)}))
    return tmp_path / "run"


def edit(run: Path, bundle: str, change, file: str = "inference.json") -> None:
    path = run / "bundles" / bundle / "configs" / file
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_the_bundles_of_a_run_are_this_package_s_own(run):
    settings, chosen = settings_of(run)
    assert settings.overrides == TINY
    assert chosen == {}
    edit(run, "retinal_unet", lambda c: c.update(num_labels=4))
    older = {name: f"/nowhere/{name}" for name in ("bundle_root", "latent_diffusion", "retinal_unet", "prior_path")}
    edit(run, "semantic_controlnet", lambda c: c.update(older))
    settings_of(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["network_def"].update(_target_="os.system"),
        lambda c: c["network_def"].update(_mode_="debug"),
        lambda c: c.update(more="$__import__('os').system('touch witness')"),
        lambda c: c.update(more="%/etc/hostname"),
        lambda c: c.update(base_bundle="../../elsewhere"),
        lambda c: c.update(initialize=[CALL]),
        lambda c: c.update(initialize=[]),
        lambda c: c.update(output_dir="/elsewhere"),
        lambda c: c.update(bundle_root=CALL),
        lambda c: c.update(prior_path="$1"),
    ],
)
@pytest.mark.parametrize("bundle", ["synthesis", "semantic_controlnet"])
def test_bundles_of_a_run_that_would_run_something_else_are_refused(run, bundle, change):
    edit(run, bundle, change)
    words = ["synthesize", "--run", str(run), "--count", "1", "--output", str(run / "more")]
    result = CliRunner().invoke(app, words)
    assert "runs or refers to something else" in str(result.exception)
    assert not (run / "more").exists()


def test_a_run_does_not_lead_to_bundles_of_elsewhere(run, tmp_path):
    shutil.copytree(run / "bundles" / "latent_diffusion", tmp_path / "elsewhere" / "latent_diffusion")
    edit(run, "semantic_controlnet", lambda c: c.update(latent_diffusion=str(tmp_path / "elsewhere/latent_diffusion")))
    with pytest.raises(ValueError, match="at 'latent_diffusion'"):
        settings_of(run)


@pytest.mark.parametrize("place", ["@null_text", "/nowhere/e#vil", "/nowhere/@::a"])
def test_a_place_that_monai_would_make_anew_leads_nowhere(run, place):
    edit(run, "semantic_controlnet", lambda c: c.update(latent_diffusion=place, null_text="/nowhere/evil"))
    with pytest.raises(ValueError, match="runs or refers to something else"):
        settings_of(run)


def test_nothing_lies_where_a_part_of_a_missing_bundle_would_be_looked_for(run):
    (run / "bundles" / "configs").mkdir()
    with pytest.raises(ValueError, match="expected bundles alone"):
        settings_of(run)


@pytest.mark.parametrize("name", ["bundles", "bundles/synthesis", "bundles/synthesis/configs/inference.json"])
def test_a_run_s_bundles_are_no_links(run, tmp_path, name):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link to"):
        settings_of(run)


@pytest.mark.parametrize("name", ["gzip.py", "models/x.so", "nibabel/__init__.py", "a.pyc"])
def test_a_run_holds_no_code_that_python_would_import(run, name):
    path = run / "bundles" / "synthesis" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("raise SystemExit")
    with pytest.raises(ValueError, match="is code, which Python would import"):
        settings_of(run)


def test_other_configurations_count_where_they_are_used(run):
    edit(run, "retinal_unet", lambda c: c["optimizer"].update(_target_="torch.optim.SGD"), "train.json")
    settings, _ = settings_of(run)
    places = measured_places(settings.main, settings.scaling_of(settings.main))
    with pytest.raises(ValueError, match=r"train\.json' runs or refers to"):
        require_own_bundles(run / "bundles", settings.presets, TINY, places, "*.json")


# ---------------------------------------------------------------- texts and paths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study #3", "reads '#' as '::'"),
        ("a@#b", "reads '#'"),
        ("a@::b", "takes '@::'"),
        ("50%::x", "takes '%::'"),
        ("$x", "run as code"),
        ("%x", "run as code"),
        ("@x", "another entry"),
        ("@x::0", "another entry"),
        ("@", "another entry"),
        ("s3://bucket/a#b", "Rename the bucket"),
    ],
)
def test_texts_that_monai_would_not_take_as_they_are(text, message):
    for value, name in ((text, "'x'"), (["a", text], "'x::1'"), ({"k": [text]}, "'x::k::0'")):
        with pytest.raises(ValueError, match=message) as caught:
            require_literal(value, "x")
        assert name in str(caught.value)


@pytest.mark.parametrize("text", ["/a/$b", "/a/@b", "/a/50%", "a?b", " $x", "a::b", "Übung 1", "@x/y", "a@b", "./$x"])
def test_other_characters_are_letters_like_any(text):
    require_literal(text, "x")


def domain(folder: Path, device: str = "d") -> Path:
    with DatasetWriter(folder, About(name="n", device=device, labels={0: "a", 1: "b"}, suffix=".png")) as writer:
        for i, split in enumerate(("training", "validation", "test")):
            image = np.random.default_rng([i, ord(folder.name)]).integers(0, 255, (16, 16), dtype=np.uint8)
            writer.add(split, image, image // 128, subject=f"{folder.name}{i}")
    return folder


@pytest.mark.parametrize("name", ["labeled", "unlabeled", "output"])
def test_an_experiment_refuses_a_path_that_monai_would_change(tmp_path, name):
    folders = {key: str(tmp_path / key) for key in ("labeled", "unlabeled", "output")}
    with pytest.raises(ValueError, match=rf"'{name}' is .*reads '#' as '::'"):
        Settings.from_dict(folders | {name: str(tmp_path / "study #3")}).validate()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["$__import__('os').system('touch witness')", "%x", "@seed", "Spectralis #2"])
def test_the_name_of_a_device_is_never_evaluated(tmp_path, device):
    settings = Settings(str(domain(tmp_path / "a")), str(domain(tmp_path / "b", device)), str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"dataset\.json::device' is"):
        settings.validate()
    root = install("synthesis", tmp_path / "bundles")
    with pytest.raises(ValueError, match=r"'inference\.json::device_name' is"):
        run_bundle(root / "configs" / "inference.json", "infer", device_name=device)


@pytest.mark.parametrize("label", ["$import antigravity", "%x"])
def test_the_name_of_a_label_is_never_evaluated(tmp_path, label):
    settings = Settings(str(domain(tmp_path / "a")), str(domain(tmp_path / "b")), str(tmp_path / "run"))
    for name in "ab":
        path = tmp_path / name / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": {"0": "a", "1": label}}))
    with pytest.raises(ValueError, match=r"dataset\.json::labels::1' is .* run as code"):
        settings.validate()


def test_a_bundle_in_a_folder_that_monai_would_change_is_refused(tmp_path):
    root = install("retinal_unet", tmp_path / "a #1")
    for call in (
        lambda: run_bundle(root / "configs" / "evaluate.json", "infer"),
        lambda: from_bundle(root),
        lambda: load_config(root),
    ):
        with pytest.raises(ValueError, match="reads '#' as '::'"):
            call()


@pytest.mark.parametrize("value", ["x #1", "['a','b #2']", "$there", "$nowhere", "@there", "@nowhere"])
def test_an_option_that_monai_would_misread_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$there").mkdir()
    config = Path(bundle_root("retinal_unet")) / "configs" / "train.json"
    with pytest.raises(ValueError, match=r"'--dataset_dir' is .*(run as code|reads '#'|another entry)"):
        refuse_unknown_options(["--config_file", str(config), "--dataset_dir", value])


@pytest.mark.parametrize("value", ["$'a'", "@validation_dir", "$@bundle_root + '/x'", "./$there", "a?b%c", "%x.json#y"])
def test_options_in_monai_s_own_words_are_not(value):
    config = Path(bundle_root("retinal_unet")) / "configs" / "train.json"
    refuse_unknown_options(["--config_file", str(config), "--dataset_dir", value])


@pytest.mark.parametrize(
    "decoy",
    [
        {"scheduler::prediction_type": "@prediction_type"},
        {"scheduler#prediction_type": "@prediction_type"},
        {"": {"scheduler": {"prediction_type": "@prediction_type"}}},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_an_entry_with_the_id_of_another_does_not_hide_it(decoy, first):
    before = {"scheduler": {"_target_": "a.b", "prediction_type": "@prediction_type"}, "prediction_type": "epsilon"}
    evil = {"scheduler": {"_target_": "a.b", "prediction_type": "$open('x', 'w')"}, "prediction_type": "epsilon"}
    assert changed_wiring(before, {**decoy, **evil} if first else {**evil, **decoy})


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_a_text_that_no_file_can_be_called_is_refused(text):
    with pytest.raises(ValueError, match="which no file can be called"):
        require_literal({"output": text}, "settings")


@pytest.mark.parametrize("more", [{"+a": {"x": 2}}, {"+a": {"y": 2}}, {"+checks": ["q"]}])
def test_what_monai_would_merge_into_another_entry_is_wiring(more):
    before = {"a": {"_target_": "f", "x": "$1"}, "checks": []}
    assert changed_wiring(before, before | more)
