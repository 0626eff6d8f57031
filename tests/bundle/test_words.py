"""Networks from scratch that are told the weather in words: the RGB bundle with its preset "words", on tiny streets."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from monai.networks.nets import UNet

from tests.bundle.test_rgb import TINY, run_chain, two_weathers
from unicorn_monai.bundle.installation import bundle_root, configured, install
from unicorn_monai.bundle.references import definition, from_bundle
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.data.augmented import write_augmented
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.diffusion.word_vectors import WordVectors
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.segmentation.pseudo_labels import PseudoLabeller
from unicorn_monai.system.networks import AppliedNetwork
from unicorn_monai.system.weights import save_weights

PLAIN, FOG, NIGHT = "an image", "an image, foggy scene", "an image, night scene"
SUBDOMAINS = {"diffusion.json": TINY["diffusion.json"] | {"subdomains": ["fog", "night"]}}
TRAININGS = {  # the diffusion model and both ControlNets: prompts of their images, share that is dropped
    "train_diffusion": ({PLAIN, FOG, NIGHT}, 0.1),
    "train_uncertainty_controlnet": ({PLAIN, FOG, NIGHT}, 0.5),
    "train_semantic_controlnet": ({PLAIN}, 0.1),
}


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return two_weathers(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def trained(streets, tmp_path_factory):
    """The bundle, and the parsed configuration of every stage that was run."""
    root = install("rgb_2d", tmp_path_factory.mktemp("bundles"), ["small", "words"], TINY | SUBDOMAINS)
    return root, run_chain(root, streets)


@pytest.mark.parametrize(("name", "expected"), TRAININGS.items(), ids=TRAININGS.keys())
def test_every_training_sees_words_and_drops_some(name, expected, trained):
    prompts, dropout = expected
    encoder, config = WordVectors(), trained[1][name]
    for phase in ("train", "validate"):
        dataset = config.get_parsed_content(f"{phase}::dataset")
        seen = {tuple(image["context"].flatten().tolist()) for image in dataset}
        assert seen == {tuple(context.flatten().tolist()) for context in encoder.encode(sorted(prompts))}
        engine = config.get_parsed_content({"train": "train::trainer", "validate": "validate::evaluator"}[phase])
        prepare = engine.prepare_batch
        assert prepare.prompt_dropout == dropout
        assert torch.equal(prepare.null_context, torch.zeros(1, encoder.tokens, encoder.dimensions))


@pytest.mark.parametrize("part", ["diffusion", "uncertainty_controlnet", "semantic_controlnet"])
def test_every_network_attends_to_them(part, trained):
    net = from_bundle(trained[0] / part, weights="model.pt")
    keys = [value for name, value in net.named_parameters() if name.endswith("attn2.to_k.weight")]
    assert net.with_conditioning
    assert keys
    assert {key.shape[1] for key in keys} == {WordVectors().dimensions}


def test_synthesis_names_the_sub_domains_in_turn(trained, streets, tmp_path):
    settings = {"dataset_dir": str(streets["A"]), "output_dir": str(tmp_path / "s"), "count": 4, "device": "cpu"}
    settings |= {"split": ["training"], "guidance": [2.0, 1.0, 3.0]}
    run_bundle(trained[0] / "configs" / "inference.json", "infer", **settings)
    assert check(tmp_path / "s", need_labels=True) == []
    items = datalist(tmp_path / "s", "training", ("image", "label"))
    assert [item["synthetic"]["prompt"] for item in items] == [FOG, NIGHT] * 2
    assert {tuple(item["synthetic"]["guidance"]) for item in items} == {(2.0, 1.0, 3.0)}


@pytest.mark.parametrize("part", ["diffusion", "uncertainty_controlnet", "semantic_controlnet"])
def test_every_part_samples_by_itself(part, trained, streets, tmp_path):
    settings = {"output_dir": str(tmp_path), "device": "cpu", "count": 2}
    if part == "semantic_controlnet":
        settings["dataset_dir"] = str(streets["A"])
    run_bundle(trained[0] / "configs" / f"{part}.json", "infer", **settings)
    assert [made["prompt"] for made in json.loads((tmp_path / "samples.json").read_text())] == [FOG, NIGHT]


def test_the_words_change_the_image(trained):
    (sheets,) = trained[1]["train_diffusion"].get_parsed_content("train::handlers")
    sheet = sheets.sampler
    generator, requests = sheet.generator, sheet.requests[:2]
    assert [request.prompt for request in requests] == [FOG, NIGHT]
    for module in generator.ldm.unet.modules():  # one epoch is too short for its last, zeroed convolutions
        if getattr(module, "bias", None) is not None and not module.weight.any():
            torch.nn.init.normal_(module.weight)
    fog, night = (replace(requests[0], prompt=prompt) for prompt in (FOG, NIGHT))
    assert torch.equal(generator([fog]), generator([fog]))
    assert not torch.equal(generator([fog]), generator([night]))


# ---------------------------------------------------------------- off


@pytest.mark.parametrize("bundle", ["semantic_controlnet", "uncertainty_controlnet", "synthesis", "latent_diffusion"])
def test_without_the_preset_nobody_has_words(bundle):
    root = bundle_root(bundle)
    words = ["template", "subdomains"] + (["prompts", "text"] if bundle == "latent_diffusion" else [])
    assert [from_bundle(root, key) for key in words] == [None] * len(words)
    if bundle == "latent_diffusion":
        assert not from_bundle(root).with_conditioning


def test_presets_are_merged_in_their_order():
    both = configured(
        "latent_diffusion", ["small", "words"], {"train_diffusion.json": {"seed": 3}}, "train_diffusion.json"
    )
    small = definition(bundle_root("latent_diffusion"), "max_epochs", "train_diffusion.json")
    assert (both["prompt_dropout"], both["seed"]) == (0.1, 3)
    assert both["max_epochs"] < small


# ---------------------------------------------------------------- the sub-domain travels, and what cannot be named


def test_copies_of_a_data_set_keep_the_sub_domain(streets, tmp_path):
    write_augmented(streets["A"], tmp_path / "augmented")
    assert {item["sub_domain"] for item in datalist(tmp_path / "augmented", "training")} == {"clear"}
    save_weights(UNet(2, 3, 10, (4, 8), (2,)), tmp_path / "model.pt")
    network = UNet(2, 3, 10, (4, 8), (2,))
    applied = AppliedNetwork(network, tmp_path / "model.pt", lambda x, net: net(x))
    PseudoLabeller(applied, streets["B"], tmp_path / "guessed", threshold=0.0, num_channels=3).run()
    own, copied = (datalist(folder, "training") for folder in (streets["B"], tmp_path / "guessed"))
    assert [item["sub_domain"] for item in copied] == [item["sub_domain"] for item in own]


def asked(streets, unlabeled, **changes) -> Settings:
    return Settings(str(streets["A"]), str(unlabeled), "r", preset="quick", **changes)


def renamed(source, target, name):
    """A copy of a data set whose items lie in another sub-domain."""
    shutil.copytree(source, target)
    header = json.loads((target / "dataset.json").read_text())
    for split in ("training", "validation", "test"):
        for item in header[split]:
            item.pop("sub_domain")
            item |= {"sub_domain": name} if name else {}
    (target / "dataset.json").write_text(json.dumps(header))
    return target


def test_words_are_those_of_the_unlabelled_domain(streets, tmp_path):
    assert asked(streets, streets["B"]).named() == {}
    assert asked(streets, streets["B"], words=True).named() == {"fog": "foggy scene", "night": "night scene"}
    other = renamed(streets["B"], tmp_path / "B", "Site 2")
    assert asked(streets, other, words=True).named() == {"Site 2": "Site 2"}


def test_words_need_something_to_name(streets, tmp_path):
    nameless = renamed(streets["B"], tmp_path / "B", None)
    with pytest.raises(ValueError, match=r"words is true, but no training image of .* has a 'sub_domain'"):
        asked(streets, nameless, words=True).validate()


@pytest.mark.parametrize("name", ["$import os", "@seed", "%other.json", "_target_", "a::b", "fog\n"])
def test_names_that_a_configuration_would_run_or_resolve_are_refused(name, streets, tmp_path):
    with pytest.raises(ValueError, match=r"The sub-domain .* cannot be named in a prompt"):
        asked(streets, renamed(streets["B"], tmp_path / "B", name), words=True).validate()


def test_text_guidance_needs_words(streets):
    with pytest.raises(ValueError, match=r"A third, of the text, can only be 1 without words"):
        asked(streets, streets["B"], guidance=(3.0, 1.0, 2.0)).validate()
    worded = asked(streets, streets["B"], guidance=(3.0, 1.0, 2.0), words=True)
    worded.validate()
    assert [worded.guidance_of(mode) for mode in ("compositional", "paper")] == [(3.0, 1.0, 2.0), (1.0, 1.0, 2.0)]
    assert asked(streets, streets["B"]).guidance_of("paper") == (1.0, 1.0)
