"""Published weights: two files that agree, each whole by itself, readable by MONAI, and compared before use."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from unicorn_monai.system import weights
from unicorn_monai.system.networks import fingerprint
from unicorn_monai.system.weights import (
    copy_weights,
    load_weights,
    read_metadata,
    read_tensors,
    save_weights,
    sha256,
    tensors_sha256,
)

FILES = ["model.json", "model.pt", "model.safetensors"]


@pytest.fixture
def network():
    return nn.Linear(3, 2)


@pytest.fixture
def path(tmp_path, network):
    save_weights(network, tmp_path / "models" / "model.pt", scale_factor=1.5, latent_shape=[8, 4, 4])
    return tmp_path / "models" / "model.pt"


@pytest.fixture(params=[".pt", ".safetensors"])
def file(path, request):
    return path.with_suffix(request.param)


def test_weights_are_read_back_with_what_belongs_to_them(network, file):
    other = nn.Linear(3, 2)
    metadata = load_weights(other, file)
    assert torch.equal(other.weight, network.weight)
    assert metadata == read_metadata(file)
    assert metadata["scale_factor"] == 1.5
    assert metadata["latent_shape"] == [8, 4, 4]
    assert metadata["sha256"] == sha256(file)
    assert metadata["architecture"] == fingerprint(network)


def test_a_copy_leaves_no_file_of_other_weights(network, path, tmp_path):
    target = tmp_path / "served" / "model.pt"
    save_weights(nn.Linear(3, 2), target)
    copy_weights(path, target)
    assert sorted(p.name for p in target.parent.iterdir()) == FILES
    assert all(sha256(target.with_name(name)) == sha256(path.with_name(name)) for name in FILES)
    path.with_suffix(".safetensors").unlink()  # as of older runs
    copy_weights(path, target)
    assert sorted(p.name for p in target.parent.iterdir()) == FILES[:2]


def test_both_files_hold_the_same_and_the_description_tells_of_both(network, path):
    state = network.state_dict()
    for found in (load_file(path.with_suffix(".safetensors")), torch.load(path, weights_only=True), read_tensors(path)):
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)
    description = json.loads(path.with_suffix(".json").read_text())
    assert description["sha256"] == sha256(path)
    assert description["safetensors_sha256"] == sha256(path.with_suffix(".safetensors"))
    assert description["tensors_sha256"] == tensors_sha256(state)


def test_each_file_describes_itself(network, file):
    file.with_suffix(".json").unlink()
    assert load_weights(nn.Linear(3, 2), file)["scale_factor"] == 1.5
    assert read_metadata(file)["sha256"] == sha256(file)


def test_the_description_stands_where_other_programs_can_read_it(path):
    with safe_open(path.with_suffix(".safetensors"), "pt") as file:
        header = json.loads(file.metadata()["unicorn_monai"])
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/description.json")]
        assert json.loads(archive.read(name)) == header
    assert header["scale_factor"] == 1.5


@pytest.mark.parametrize("options", [{}, {"map_location": "cpu"}])
def test_monai_loads_the_weights_by_its_own_handler(network, path, options):
    other = nn.Linear(3, 2)
    CheckpointLoader(str(path), {"model": other}, strict=True, **options).attach(trainer := Engine(lambda *_: None))
    trainer.run([0], max_epochs=1)
    assert torch.equal(other.weight, network.weight)


def test_weights_can_be_mapped_into_memory(network, path):
    assert torch.equal(torch.load(path, weights_only=True, mmap=True)["weight"], network.weight)


def test_equal_weights_are_equal_files(network, path, tmp_path):
    save_weights(network, tmp_path / "again" / "model.pt", scale_factor=1.5, latent_shape=[8, 4, 4])
    for name in FILES:
        assert sha256(path.with_name(name)) == sha256(tmp_path / "again" / name)


def test_the_sha256_of_tensors_sees_names_types_shapes_and_values_but_no_order():
    state = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    total = tensors_sha256(state)
    assert tensors_sha256(dict(reversed(state.items()))) == total
    others = [
        {"c": state["a"], "b": state["b"]},
        state | {"a": torch.zeros(3, 2)},
        state | {"a": torch.zeros(2, 3, dtype=torch.int32)},
        state | {"a": torch.full((2, 3), -0.0)},
        {"a": state["a"]},
    ]
    assert len({total, *map(tensors_sha256, others)}) == 1 + len(others)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_kept(tmp_path, dtype):
    network, other = nn.Linear(3, 2).to(dtype), nn.Linear(3, 2).to(dtype)
    save_weights(network, tmp_path / "model.pt")
    for suffix in (".pt", ".safetensors"):
        load_weights(other, tmp_path / f"model{suffix}")
        assert torch.equal(other.weight, network.weight)


def test_layouts_in_memory_and_shared_weights_do_not_matter(tmp_path):
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    network[2].weight = network[0].weight
    save_weights(network.to(memory_format=torch.channels_last), tmp_path / "model.pt")
    other = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    load_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(other[2].weight, network[0].weight)


# ---------------------------------------------------------------- interrupted


def cut_off(content, file, *_):
    """A full disk."""
    if hasattr(file, "write"):
        file.write(b"the first half")
    else:
        file.write_bytes(b"the first half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["torch.save", "save_file"])
def test_a_write_that_fails_leaves_the_old_files_and_nothing_else(network, path, monkeypatch, where):
    before = {name: sha256(path.with_name(name)) for name in FILES}
    target, name = (weights.torch, "save") if where == "torch.save" else (weights, "save_file")
    monkeypatch.setattr(target, name, cut_off)
    nn.init.ones_(network.weight)
    with pytest.raises(OSError, match="No space left"):
        save_weights(network, path)
    assert {name: sha256(path.with_name(name)) for name in FILES} == before
    assert sorted(file.name for file in path.parent.iterdir()) == FILES


@pytest.mark.parametrize("left", [["model.pt"], ["model.pt", "model.safetensors"], ["model.json"]])
def test_a_crash_between_two_renames_leaves_files_that_can_be_read(network, path, tmp_path, left):
    old = {name: path.with_name(name).read_bytes() for name in FILES}
    nn.init.ones_(network.weight)
    save_weights(network, path, scale_factor=2.5)
    for name in set(FILES) - set(left):
        path.with_name(name).write_bytes(old[name])
    for suffix in (".pt", ".safetensors"):
        other, file = nn.Linear(3, 2), path.with_suffix(suffix)
        metadata = load_weights(other, file)
        assert (metadata["scale_factor"] == 2.5) == (file.name in left) == bool(other.weight.eq(1).all())
        assert metadata["sha256"] == sha256(file)


# ---------------------------------------------------------------- refused


def test_weights_that_are_not_numbers_are_not_published(network, path):
    before = sha256(path)
    nn.init.constant_(network.bias, float("nan"))
    with pytest.raises(ValueError, match=r"'bias' is NaN or infinite; .*model.pt' was not written"):
        save_weights(network, path)
    assert sha256(path) == before


class Noting(nn.Linear):
    def get_extra_state(self):
        return "a text"


def test_only_tensors_are_published(tmp_path):
    with pytest.raises(ValueError, match=r"'_extra_state' of the weights is a str, expected a tensor"):
        save_weights(Noting(3, 2), tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["sha256", "architecture", "tensors_sha256"])
def test_computed_entries_cannot_be_given(network, tmp_path, name):
    with pytest.raises(ValueError, match=rf"metadata \['{name}'\] .* are computed from the weights"):
        save_weights(network, tmp_path / "model.pt", **{name: "0"})
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_named(network, path):
    path.unlink()
    with pytest.raises(ValueError, match=r"No trained weights at '.*model.pt'. Train this stage first"):
        load_weights(network, path)


def test_a_state_dictionary_without_description_is_refused(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"holds no description, and no 'model.json' lies beside it"):
        load_weights(network, tmp_path / "model.pt")


def test_a_state_dictionary_with_the_description_beside_it_is_read(network, tmp_path):
    """As version 0.1.0 wrote it before the safetensors came."""
    torch.save(network.state_dict(), tmp_path / "model.pt")
    description = {"sha256": sha256(tmp_path / "model.pt"), "architecture": fingerprint(network), "epoch": 3}
    (tmp_path / "model.json").write_text(json.dumps(description))
    other = nn.Linear(3, 2)
    assert load_weights(other, tmp_path / "model.pt")["epoch"] == 3
    assert torch.equal(other.weight, network.weight)


def test_exchanged_weights_are_refused(network, path):
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(ValueError, match="does not have the sha256 noted beside it"):
        load_weights(network, path)


def test_a_flipped_bit_is_noticed(network, file):
    content = bytearray(file.read_bytes())
    at = content.find(network.weight.detach().numpy().tobytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="do not have the sha256 of their description"):
        load_weights(network, file)


@pytest.mark.parametrize("other", [nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2).double()])
def test_weights_of_another_architecture_are_refused(file, other):
    with pytest.raises(ValueError, match="belong to a network of another architecture"):
        load_weights(other, file)


def test_a_number_repeated_a_billion_times_does_not_fill_the_memory(tmp_path):
    torch.save({"state": {"weight": torch.zeros(1).expand(10**12)}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"is refused: a tensor has 4000000000000 bytes, the file \d+"):
        weights.load_tensors_only(tmp_path / "model.pt")


def test_tensors_that_have_no_names_are_no_state_dictionary(tmp_path):
    torch.save({0: torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected tensors by name"):
        weights.read_tensors(tmp_path / "model.pt")


def test_an_encrypted_archive_is_told(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(1)}, path)
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        place = -1
        while (place := content.find(mark, place + 1)) >= 0:
            content[place + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.pt' is no archive of torch.save \(File .* is encrypted"):
        weights.require_tensors_only(path)


def test_a_description_that_is_no_text_is_told_with_its_file(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"The description '.*model.json' is not valid JSON"):
        weights.read_metadata(tmp_path / "model.pt")
