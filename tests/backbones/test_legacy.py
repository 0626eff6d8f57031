"""Weights of monai-generative 0.2.3 in today's networks: the same outputs as recorded with the real package."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from monai.networks import nets

from command_line import CliRunner
from legacy_reference import CASES, answers, packed, unpacked, weights
from unicorn_monai.backbones.legacy import convert, import_weights, read_checkpoint
from unicorn_monai.bundle.references import from_bundle, weights_metadata
from unicorn_monai.cli import app
from unicorn_monai.system.weights import read_metadata, sha256

RECORD = json.loads((Path(__file__).parents[1] / "files" / "legacy.json").read_text())
OLD_PYTHON = os.environ.get("UNICORN_LEGACY_PYTHON")
# Outputs of two versions of a network in float32; their attention sums up in another order.
TOLERANCE = 1e-5
LAYOUTS = [{"include_fc": fc, "use_combined_linear": combined} for fc in (True, False) for combined in (False, True)]


def today(case, **layout):
    """Today's network of a case, with random weights."""
    kind, arguments = CASES[case]
    arguments = {"channels" if k == "num_channels" else k: v for k, v in arguments.items()}
    torch.manual_seed(0)
    return getattr(nets, kind)(**arguments, **layout).eval()


def old(case):
    return weights(RECORD["cases"][case]["shapes"])


def recorded(case, record=RECORD):
    return {name: unpacked(text) for name, text in record["cases"][case]["answers"].items()}


@torch.no_grad()
def furthest(case, network, expected):
    """Largest absolute difference of all outputs."""
    found = answers(*CASES[case], network)
    assert found.keys() == expected.keys()
    return max(float((value.flatten() - expected[name].flatten()).abs().max()) for name, value in found.items())


def with_cross_attention(case):
    return CASES[case][1].get("with_conditioning", False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: ",".join(k for k, on in layout.items() if on) or "plain")
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_old_package(case, layout):
    network = today(case, **layout)
    if with_cross_attention(case) and not layout["include_fc"]:
        with pytest.raises(ValueError, match="`include_fc` must be true with cross-attention"):
            convert(network, old(case))
        return
    if CASES[case][1].get("use_convtranspose"):
        with pytest.raises(ValueError, match="no network of today gives their outputs"):
            convert(network, old(case))
        return
    expected = recorded(case)
    assert furthest(case, network, expected) > 0.01, "the comparison would not notice random weights"
    network.load_state_dict(convert(network, old(case)))
    assert furthest(case, network, expected) <= TOLERANCE


def test_the_record_covers_every_case_and_was_made_with_the_package_itself():
    assert RECORD["cases"].keys() == CASES.keys()
    assert RECORD["versions"]["monai-generative"] == "0.2.3"


# ---------------------------------------------------------------- what does not fit is named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv_in.conv.weight"), "has no 'conv_in.conv.weight', from which 'conv_in.conv.weight'"),
        (lambda s: s.pop("middle_block.attention.to_k.bias"), "has no 'middle_block.attention.to_k.bias'"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 entries of the checkpoint have no place .* first 'extra'"),
        (lambda s: s.update({"out.2.proj_attn.weight": torch.zeros(1)}), "first 'out.2.proj_attn.weight'"),
        (
            lambda s: s.update({"conv_in.conv.bias": torch.zeros(3)}),
            r"'conv_in.conv.bias' of the checkpoint has shape \(3,\)",
        ),
    ],
)
def test_an_entry_without_counterpart_is_named(change, message):
    state = old("U-Net")
    change(state)
    with pytest.raises(ValueError, match=message):
        convert(today("U-Net"), state)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="Build the network with the arguments of the old one"):
        convert(today("U-Net"), old("U-Net with cross-attention"))
    with pytest.raises(ValueError, match="Build the network with the arguments of the old one"):
        convert(today("U-Net with cross-attention"), old("U-Net"))


def test_half_precision_becomes_the_precision_of_the_network():
    state = {name: value.half() for name, value in old("U-Net").items()}
    network = today("U-Net")
    assert {value.dtype for value in convert(network, state).values()} == {torch.float32}


# ---------------------------------------------------------------- files


def test_a_state_dictionary_is_found_by_its_name(tmp_path):
    state = old("ControlNet")
    torch.save({"epoch": 3, "controlnet": state, "ema": state}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt", "ema").keys() == state.keys()
    with pytest.raises(ValueError, match=r"is no state dictionary; .* in it: \['controlnet', 'ema'\]"):
        read_checkpoint(tmp_path / "c.pt")
    with pytest.raises(ValueError, match="entry 'optimizer' of"):
        read_checkpoint(tmp_path / "c.pt", "optimizer")


def test_names_from_several_gpus_are_understood(tmp_path):
    state = old("ControlNet")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt").keys() == state.keys()


@pytest.mark.parametrize("content", [{}, [1, 2], torch.zeros(2), {"a": 1.0}])
def test_what_holds_no_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="is no state dictionary"):
        read_checkpoint(tmp_path / "c.pt")


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"No checkpoint at '.*c\.pt'"):
        read_checkpoint(tmp_path / "c.pt")


@pytest.fixture
def bundle(tmp_path):
    """A bundle with the U-Net and the autoencoder of two cases."""
    definitions = {"network_def": "U-Net", "autoencoder_def": "autoencoder with attention"}
    config = {}
    for id, case in definitions.items():
        kind, arguments = CASES[case]
        config[id] = {"_target_": kind} | {"channels" if k == "num_channels" else k: v for k, v in arguments.items()}
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "inference.json").write_text(json.dumps(config))
    return tmp_path / "bundle"


def test_imported_weights_are_published_with_what_belongs_to_them(bundle, tmp_path):
    torch.save(old("U-Net"), tmp_path / "old.pt")
    command = ["import-weights", str(tmp_path / "old.pt"), "--bundle", str(bundle)]
    result = CliRunner().invoke(app, [*command, "--set", "scale_factor=0.9", "--set", "latent_shape=[3, 8, 8]"])
    assert result.exit_code == 0, result.output
    network = from_bundle(bundle, weights="model.pt")
    assert furthest("U-Net", network, recorded("U-Net")) <= TOLERANCE
    assert weights_metadata(bundle, "model.pt", "scale_factor") == 0.9
    assert weights_metadata(bundle, "model.pt", "latent_shape") == [3, 8, 8]
    assert read_metadata(bundle / "models" / "model.pt")["imported_sha256"] == sha256(tmp_path / "old.pt")


def test_another_network_of_a_bundle_can_be_imported(bundle, tmp_path):
    torch.save({"state_dict": old("autoencoder with attention")}, tmp_path / "old.pt")
    path = import_weights(tmp_path / "old.pt", bundle, "autoencoder_def", "autoencoder.pt", "state_dict")
    network = from_bundle(bundle, "autoencoder_def", path.name)
    assert furthest("autoencoder with attention", network, recorded("autoencoder with attention")) <= TOLERANCE


def test_a_value_that_is_not_json_is_bad_usage(bundle, tmp_path):
    torch.save(old("U-Net"), tmp_path / "old.pt")
    command = ["import-weights", str(tmp_path / "old.pt"), "--bundle", str(bundle), "--set", "scale_factor=high"]
    assert CliRunner().invoke(app, command).exit_code == 2
    assert not (bundle / "models").exists()


# ---------------------------------------------------------------- the real package (make test-legacy)


@pytest.fixture(scope="module")
def produced(tmp_path_factory):
    if OLD_PYTHON is None:
        pytest.skip("UNICORN_LEGACY_PYTHON names no interpreter with monai-generative 0.2.3; see `make test-legacy`")
    folder = tmp_path_factory.mktemp("legacy")
    subprocess.run(
        [OLD_PYTHON, str(Path(__file__).parents[1] / "helpers" / "legacy_reference.py"), str(folder)], check=True
    )
    return folder


def test_the_record_is_what_the_package_gives(produced):
    fresh = json.loads((produced / "legacy.json").read_text())
    assert fresh["cases"].keys() == RECORD["cases"].keys()
    for case, content in RECORD["cases"].items():
        assert fresh["cases"][case]["shapes"] == content["shapes"]
        found = recorded(case, fresh)
        for name, expected in recorded(case).items():
            assert (found[name] - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("case", [case for case in CASES if "transposed" not in case])
def test_checkpoints_of_the_package_give_its_outputs(produced, case):
    state = read_checkpoint(produced / f"{list(CASES).index(case)}.pt")
    network = today(case)
    network.load_state_dict(convert(network, state))
    assert furthest(case, network, recorded(case, json.loads((produced / "legacy.json").read_text()))) <= TOLERANCE


def test_packing_keeps_the_numbers():
    values = torch.tensor([[1.0, -2.5]])
    assert unpacked(packed(values)).tolist() == [1.0, -2.5]
