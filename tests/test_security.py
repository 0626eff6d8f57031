"""Probes: files of other people that try to run code, to write elsewhere, or to fill the memory.

Every probe carries a payload that would leave the file ``WITNESS`` behind, or points out of its folder. After each, no
witness is there, no process was started, and nothing outside the folder of the probe has changed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import struct
import sys
import tomllib
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from packaging.requirements import Requirement
from safetensors.torch import save_file
from torch import nn

from command_line import CliRunner
from data_prep import surface_files
from unicorn_monai.backbones.legacy import read_checkpoint
from unicorn_monai.bundle.installation import install
from unicorn_monai.bundle.references import weights_metadata
from unicorn_monai.bundle.verify import SUMS, findings, seal
from unicorn_monai.cli import app
from unicorn_monai.data.checks import problems
from unicorn_monai.data.items import datalist
from unicorn_monai.data.journal import JOURNAL
from unicorn_monai.data.layout import HEADER, inside
from unicorn_monai.data.uncertainties import read_uncertainties
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.images.files import MOST_PIXELS, read_array, read_shape, write_array
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.report.report import write_report
from unicorn_monai.segmentation.recorders import SegmentationWriter
from unicorn_monai.system.networks import fingerprint
from unicorn_monai.system.weights import load_weights, read_metadata, save_weights, sha256, tensors_sha256
from unicorn_monai.training.state import TrainingState

WITNESS = "witness"
PROCESSES = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"}
started: list[str] = []
watching = SimpleNamespace(on=False)


def watch(event, arguments):
    if watching.on and event in PROCESSES:
        started.append(f"{event} {arguments}")


sys.addaudithook(watch)


class Harm:
    """Unpickled, it leaves a witness."""

    def __init__(self, folder):
        self.code = f"__import__('pathlib').Path({str(folder / WITNESS)!r}).touch()"

    def __reduce__(self):
        return eval, (self.code,)


def contents(folder, but):
    """Every file and link under ``folder`` with its content, except under ``but``."""
    found = {}
    for path in folder.rglob("*"):
        if but not in path.parents and path != but:
            found[path] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def root(tmp_path):
    """The folder of a probe; what lies beside it must stay as it is."""
    folder, outside = tmp_path / "root", tmp_path / "outside"
    for path in (folder, outside):
        path.mkdir()
    (outside / "secret.txt").write_text("secret")
    write_array(outside / "secret.nii.gz", np.full((4, 5), 7, np.uint8))
    before = contents(tmp_path, folder)
    started.clear()
    watching.on = True
    yield folder
    watching.on = False
    assert started == [], "a process was started"
    assert not list(tmp_path.rglob(WITNESS)), "the payload was run"
    assert contents(tmp_path, folder) == before, "something outside was changed"


@pytest.fixture
def outside(root):
    return root.parent / "outside"


def test_a_payload_that_is_run_would_be_noticed(tmp_path):
    harm = Harm(tmp_path)
    pickle.loads(pickle.dumps(harm))
    assert (tmp_path / WITNESS).is_file()
    (tmp_path / WITNESS).unlink()
    torch.save({"weight": harm}, tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / WITNESS).is_file()


# ---------------------------------------------------------------- weights as .pt


def network():
    return nn.Linear(3, 2)


def weights(root):
    path = root / "model.pt"
    save_weights(network(), path, scale_factor=1.5)
    return path


def described(path):
    """Let the description beside a file be true of it."""
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps({"sha256": sha256(path), "architecture": fingerprint(network())}))


def members(path):
    with zipfile.ZipFile(path) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def rewritten(path, change=lambda name, content: content, more=(), packed=False):
    """The archive again, its members changed and others added."""
    parts = [(info.filename, change(info.filename, content)) for info, content in members(path)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in [*parts, *more]:
            archive.writestr(name, content)


def pickled(payload, protocol):
    return lambda name, content: pickle.dumps(payload, protocol) if name.endswith("data.pkl") else content


def saved(content, **options):
    return lambda path, root: torch.save({"weight": content(root)}, path, **options)


def scripted(path, root):
    torch.jit.save(torch.jit.script(network()), str(path))


OLD_CODE = b"cbuiltins\neval\n(Vopen('witness', 'w')\ntR."
HIDDEN_CODE = b"(Vopen('witness', 'w')\nibuiltins\neval\n."
ARCHIVES = {
    "a pickle in the archive": saved(Harm),
    "a pickle in the old format of torch": saved(Harm, _use_new_zipfile_serialization=False),
    "a bare pickle": lambda path, root: path.write_bytes(pickle.dumps(Harm(root))),
    "pickled numpy objects": lambda path, root: np.save(path.open("wb"), np.array([Harm(root)]), allow_pickle=True),
    "a list of tensors exchanged": lambda path, root: rewritten(path, pickled(Harm(root), 2)),
    "names without GLOBAL": lambda path, root: rewritten(path, pickled(Harm(root), 4)),
    "opcodes by hand": lambda path, root: rewritten(path, lambda n, c: OLD_CODE if n.endswith("data.pkl") else c),
    "an instance opcode": lambda path, root: rewritten(path, lambda n, c: HIDDEN_CODE if n.endswith("data.pkl") else c),
    "a second list of tensors": lambda path, root: rewritten(
        path, more=[(members(path)[0][0].filename, pickle.dumps(Harm(root)))]
    ),
    "a member outside": lambda path, root: rewritten(path, more=[("../outside/secret.txt", "changed")]),
    "a member with an absolute path": lambda path, root: rewritten(
        path, more=[(str(root.parent / "outside" / "secret.txt"), "changed")]
    ),
    "a member in another folder": lambda path, root: rewritten(
        path, more=[("other/data.pkl", pickle.dumps(Harm(root)))]
    ),
    "packed zeros": lambda path, root: rewritten(
        path, lambda n, c: bytes(50_000_000) if n.endswith("data/0") else c, packed=True
    ),
    "a program": scripted,
    "a cut archive": lambda path, root: path.write_bytes(path.read_bytes()[:-200]),
    "no weights": lambda path, root: torch.save({"weight": "text"}, path),
    "nothing": lambda path, root: path.write_bytes(b""),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("told", [False, True], ids=["as it is", "with a description that fits"])
@pytest.mark.parametrize("probe", ARCHIVES)
def test_weights_are_refused_unread(root, probe, told):
    path = weights(root)
    ARCHIVES[probe](path, root)
    if told:
        described(path)
    for reader in (lambda p: load_weights(network(), p), read_checkpoint):
        with pytest.raises(ValueError, match=r"model\.pt"):
            reader(path)
    if not told:  # a bundle with these weights
        (root / "configs").mkdir()
        assert any("model.pt" in line for line in findings(root))
        assert CliRunner().invoke(app, ["verify", str(root)]).exit_code == 1


def test_a_training_is_not_resumed_from_a_pickle(root):
    torch.save({"objects": Harm(root)}, root / "last.pt")
    trainer = Engine(lambda *_: None)
    with pytest.raises(ValueError, match="Cannot resume from"):
        TrainingState(root / "last.pt", {}, resume=True).attach(trainer)
    assert not trainer.has_event_handler(TrainingState.save, Events.EPOCH_COMPLETED)


def test_a_bomb_in_the_description_is_refused(root):
    path = weights(root)
    rewritten(path, lambda n, c: b"[" * 20_000_000 if n.endswith("description.json") else c)
    with pytest.raises(ValueError, match="20000000 bytes; refused"):
        read_metadata(path)


NESTED = "[" * 200_000


@pytest.mark.parametrize("text", [NESTED, "null", '{"sha256": 1}', "\x00", '{"sha256": "$open(1)"}'])
def test_a_description_beside_that_is_none_is_refused(root, text):
    path = weights(root)
    torch.save(network().state_dict(), path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json"):
        load_weights(network(), path)


def test_expressions_in_a_description_are_text(root):
    text = f"${Harm(root).code}"
    save_weights(network(), root / "models" / "model.pt", scale_factor=text, latent_shape={"_target_": "os.system"})
    assert weights_metadata(root, "model.pt", "scale_factor") == text
    assert weights_metadata(root, "model.pt", "latent_shape") == {"_target_": "os.system"}


# ---------------------------------------------------------------- weights as .safetensors


def header_and_data(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(path, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def relabelled(changes):
    """Another header for the same data."""

    def probe(path):
        header, data = header_and_data(path)
        for name, change in changes.items():
            header[name] = change(header[name]) if callable(change) else change
        with_header(path, header, data)

    return probe


def redescribed(**changes):
    """Another description in the header."""
    return relabelled(
        {"__metadata__": lambda m: {"unicorn_monai": json.dumps(json.loads(m["unicorn_monai"]) | changes)}}
    )


def of_another_network(path):
    state = nn.Linear(5, 2).state_dict()
    text = json.dumps({"architecture": fingerprint(network()), "tensors_sha256": tensors_sha256(state)})
    save_file(state, path, {"unicorn_monai": text})


def not_finite(path):
    state = {name: torch.full_like(value, float("nan")) for name, value in network().state_dict().items()}
    text = json.dumps({"architecture": fingerprint(network()), "tensors_sha256": tensors_sha256(state)})
    save_file(state, path, {"unicorn_monai": text})


HEADERS = {
    "a length beyond all memory": lambda path: with_header(path, *header_and_data(path), length=2**60),
    "a length beyond the file": lambda path: with_header(path, *header_and_data(path), length=10_000),
    "no length": lambda path: path.write_bytes(b"\x01"),
    "no JSON": lambda path: with_header(path, b"{" * 64, b""),
    "JSON without end": lambda path: with_header(path, NESTED.encode(), b""),
    "data beyond the file": relabelled({"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 8_000_000]}}),
    "data that overlap": relabelled({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "a shape beyond its data": relabelled(
        {"weight": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [8, 32]}}
    ),
    "an unknown type": relabelled({"weight": {"dtype": "PY", "shape": [2, 3], "data_offsets": [8, 32]}}),
    "numbers taken for others": relabelled({"weight": {"dtype": "I32", "shape": [2, 3], "data_offsets": [8, 32]}}),
    "a description that is text": relabelled({"__metadata__": {"unicorn_monai": "$open('witness', 'w')"}}),
    "a description without end": relabelled({"__metadata__": {"unicorn_monai": NESTED}}),
    "another architecture": redescribed(architecture="0" * 64),
    "another sha256": redescribed(tensors_sha256="0" * 64),
    "the architecture of another network": of_another_network,
    "weights that are no numbers": not_finite,
}


@pytest.mark.parametrize("probe", HEADERS)
def test_a_header_that_lies_is_refused(root, probe):
    path = weights(root).with_suffix(".safetensors")
    HEADERS[probe](path)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_weights(network(), path)
    (root / "configs").mkdir()
    assert any("model" in line for line in findings(root))


# ---------------------------------------------------------------- data lists


def dataset(root, name="set", **changes):
    """A data set of two images with labels; the header, or fields of its first item, changed."""
    labels = {0: "vitreous", 1: "retina"}
    with DatasetWriter(root / name, About(name=name, device="d", labels=labels, suffix=".png")) as writer:
        for k in range(2):
            label = np.tile(np.arange(8, dtype=np.uint8)[:, None] // 4, (1, 9))
            image = (40 * label + np.arange(9, dtype=np.uint8) + k).astype(np.uint8)
            writer.add("training", image, label, subject=f"s{k}")
    header = json.loads((root / name / HEADER).read_text())
    for key, value in changes.items():
        if key in ("image", "label", "subject"):
            header["training"][0][key] = value
        else:
            header[key] = value
    (root / name / HEADER).write_text(json.dumps(header))
    return root / name


def linked(root, outside, name, target):
    folder = dataset(root)
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    return folder


def linked_folder(root, outside):
    folder = dataset(root, image="elsewhere/secret.nii.gz")
    (folder / "elsewhere").symlink_to(outside)
    return folder


def linked_in_circles(root, outside):
    folder = dataset(root, image="circle/0.png")
    (folder / "circle").symlink_to(folder / "circle")
    return folder


def queue(root, outside):
    folder = dataset(root, image="images/pipe.png")
    os.mkfifo(folder / "images" / "pipe.png")
    return folder


def replaced(text):
    def probe(root, outside):
        folder = dataset(root)
        (folder / HEADER).write_bytes(text(root) if callable(text) else text)
        return folder

    return probe


LISTS = {
    "an image outside": lambda root, outside: dataset(root, image="../../outside/secret.nii.gz"),
    "a label map outside": lambda root, outside: dataset(root, label="images/../../../outside/secret.nii.gz"),
    "an absolute path": lambda root, outside: dataset(root, image=str(outside / "secret.nii.gz")),
    "an absolute label": lambda root, outside: dataset(root, label=str(outside / "secret.nii.gz")),
    "a link to a file outside": lambda root, outside: linked(
        root, outside, "images/000000.png", outside / "secret.nii.gz"
    ),
    "a link of a label map": lambda root, outside: linked(
        root, outside, "labels/000000.png", outside / "secret.nii.gz"
    ),
    "a link to a device": lambda root, outside: linked(root, outside, "images/000000.png", "/dev/zero"),
    "a linked folder": linked_folder,
    "links in circles": linked_in_circles,
    "a zero byte": lambda root, outside: dataset(root, image="images/000000.png\x00.nii.gz"),
    "an address": lambda root, outside: dataset(root, image="file:///etc/hostname"),
    "a folder": lambda root, outside: dataset(root, image="images"),
    "a pipe without end": queue,
    "an expression as image": lambda root, outside: dataset(root, image=f"${Harm(root).code}"),
    "a component as image": lambda root, outside: dataset(
        root, image={"_target_": "os.system", "command": "touch witness"}
    ),
    "a component as label": lambda root, outside: dataset(
        root, label={"_target_": "os.system", "command": "touch witness"}
    ),
    "another file as image": lambda root, outside: dataset(root, image="%../outside/secret.txt"),
    "labels without end": replaced(b'{"labels": ' + NESTED.encode()),
    "a pickle": replaced(lambda root: pickle.dumps(Harm(root))),
    "a component as data set": replaced(b'{"_target_": "os.system", "command": "touch witness"}'),
    "items that are none": replaced(b'{"labels": {"0": "a"}, "training": {"_target_": "os.system"}}'),
}


@pytest.mark.parametrize("probe", LISTS)
def test_a_data_list_does_not_lead_out_of_its_folder(root, outside, probe):
    folder = LISTS[probe](root, outside)
    with pytest.raises(ValueError, match=r"set/dataset\.json|set'|images|does not exist|is no path"):
        datalist(folder, "training", ("image", "label"))
    with suppress(ValueError):  # no data set at all
        assert [problem for problem in problems(folder) if problem.fatal]


def test_expressions_in_names_are_text(root):
    text = f"${Harm(root).code}"
    folder = dataset(root, labels={"0": text, "1": "retina"}, device=text, name=text, subject=text)
    assert datalist(folder, "training")[0]["subject"] == text
    assert CliRunner().invoke(app, ["check", str(folder)]).exit_code in (0, 1)


@pytest.mark.parametrize("entry", ["a/b.png", "c/../b.png", "./b.png"])
def test_what_stays_inside_is_found(root, entry):
    assert inside(root, entry, "entry").is_relative_to(root)


# ---------------------------------------------------------------- images


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, *more):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b"")


def nifti_bytes(more=b"", **fields):
    header = nib.Nifti1Image(np.zeros((4, 5), np.uint8), np.eye(4)).header
    header["vox_offset"] = 352
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + (more or bytes(4)) + bytes(20)


def dims(*sizes):
    return np.array([len(sizes), *sizes, *[1] * (7 - len(sizes))], dtype=np.int16)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n(%pipe%touch witness) (w) file closefile\nshowpage\n"
IMAGES = {
    "a PNG of ten gigapixels": ("a.png", png(100_000, 100_000)),
    "a PNG just too large": ("a.png", png(MOST_PIXELS // 1000 + 1, 1000)),
    "a PNG with a packed text": ("a.png", png(10, 10, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000))))),
    "a PNG cut off": ("a.png", png(10, 10)[:40]),
    "PostScript": ("a.png", POSTSCRIPT),
    "a NIfTI of a gigapixel": ("a.nii", nifti_bytes(dim=dims(32_000, 32_000))),
    "a NIfTI of many planes": ("a.nii", nifti_bytes(dim=dims(10_000, 10_000, 30_000))),
    "a NIfTI of negative size": ("a.nii", nifti_bytes(dim=dims(-4, 5))),
    "a NIfTI larger than its file": ("a.nii", nifti_bytes(dim=dims(9000, 9000))),
    "an extension larger than its file": (
        "a.nii",
        nifti_bytes(b"\1\0\0\0" + struct.pack("<ii", 2_000_000_000, 6), vox_offset=2_000_000_352),
    ),
    "packed rubbish": ("a.nii.gz", gzip.compress(bytes(50_000_000))),
    "a pickle as image": ("a.png", pickle.dumps(Harm(Path("elsewhere")))),
    "pickled numpy objects as image": ("a.nii", b"\x93NUMPY" + pickle.dumps(Harm(Path("elsewhere")))),
}


@pytest.mark.parametrize("probe", IMAGES)
def test_an_image_that_is_none_is_refused(root, probe):
    name, content = IMAGES[probe]
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"Cannot read '.*{name}'"):
        read_array(root / name)
    with suppress(ValueError):  # by the header alone
        assert np.prod(read_shape(root / name)) <= 3 * MOST_PIXELS


def test_what_follows_an_image_in_its_file_is_not_unpacked(root):
    with gzip.open(root / "a.nii.gz", "wb") as file:
        file.write(nifti_bytes() + bytes(100_000_000))
    assert read_array(root / "a.nii.gz").shape == (4, 5)


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
ENTITIES = {
    "entities in entities": f'<!DOCTYPE s [<!ENTITY l0 "ha">{LAUGHS}]><s>&l11;</s>',
    "a file as entity": '<!DOCTYPE s [<!ENTITY f SYSTEM "file:///etc/hostname">]><s>&f;</s>',
    "tags without end": "<s>" * 100_000,
}


@pytest.mark.parametrize("probe", ENTITIES)
def test_an_xml_file_is_not_expanded(root, probe):
    (root / "surfaces.xml").write_text(ENTITIES[probe])
    with pytest.raises(ValueError, match=r"surfaces\.xml|surface"):
        surface_files.read_surfaces(root / "surfaces.xml", None, None)


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("name", ["images", "labels", JOURNAL])
def test_a_writer_follows_no_link_out_of_its_folder(root, outside, name):
    (root / "set").mkdir()
    (root / "set" / name).symlink_to(outside / "secret.txt" if name == JOURNAL else outside)
    with pytest.raises(ValueError, match=f"'{name}' of '.*' leaves the data set folder"):
        DatasetWriter(root / "set", About(name="n", device="d", labels={0: "a"}), resume=True)


def test_a_journal_of_other_people_writes_nothing_elsewhere(root):
    (root / "set").mkdir()
    rows = [
        {"labels": {"0": "a"}, "settings": None},
        {"index": 0, "split": "training", "image": "../../outside/secret.nii.gz", "subject": "../../outside/x"},
    ]
    (root / "set" / JOURNAL).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="expected an item with"):
        DatasetWriter(root / "set", About(name="n", device="d", labels={0: "a"}), resume=True)
    assert [path.name for path in (root / "set").glob("[!.]*")] == [JOURNAL]


def test_names_of_inputs_make_no_names_of_outputs(root):
    paths = ["/../../outside/secret.nii.gz", "../outside/$(touch witness).nii.gz", "same.png", "same.png"]
    logits = torch.rand(4, 3, 8, 9)
    evaluator = Engine(lambda engine, batch: {"pred": logits})
    SegmentationWriter(root / "out", ".png").attach(evaluator)
    evaluator.run([{"image_path": paths}])
    rows = json.loads((root / "out" / "index.json").read_text())
    assert [row["image"] for row in rows] == paths
    assert sorted(path.name for path in (root / "out").glob("*.png")) == sorted(
        f"00000{k}_{kind}.png" for k in range(4) for kind in ("label", "entropy")
    )


def test_a_subject_makes_no_name_of_a_file(root):
    folder = root / "set"
    with DatasetWriter(folder, About(name="../x", device="../y", labels={0: "a"}, suffix=".png")) as writer:
        writer.add("test", np.zeros((4, 5), np.uint8), subject="../../outside/secret", synthetic={"seed": "../z"})
    assert [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))] == ["images/000000.png"]


# ---------------------------------------------------------------- reports


HTML = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def test_html_in_names_is_text_in_the_report(root):
    results = {
        "labels": [HTML, "retina"],
        "simulated": HTML,
        "segmentation": {
            HTML: {
                "iou": [0.5, 0.6],
                "mean_iou": 0.5,
                "mean_iou_layers": 0.4,
                "mean_dice": 0.6,
                "n_test": 2,
                "ci95": None,
            }
        },
        "uncertainty": {HTML: {"mean": 0.1, "std": 0.1, "n": 2}},
        "fid": {"unlabeled": {HTML: 1.0}, "features": HTML},
        "control": {"spearman": 0.5, "oracle": HTML, "curve": []},
        "seconds": {HTML: 1.0},
        "commands": {HTML: HTML},
        "environment": {HTML: HTML},
    }
    (root / "results.json").write_text(json.dumps(results))
    settings = {"settings": {"modes": [HTML], "labeled": HTML}, "command": HTML, "versions": {HTML: HTML}}
    (root / "experiment.json").write_text(json.dumps(settings))
    (root / "pictures").mkdir()
    caption = {"file": "<b>.png", "title": HTML, "caption": HTML}
    (root / "pictures" / "captions.json").write_text(json.dumps([caption]))
    page = write_report(root).read_text()
    assert "<script" not in page
    assert "onerror=alert" not in page.replace("&lt;img src=x onerror=alert(1)&gt;", "")
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("file", ["../../outside/secret.txt", "/etc/hostname", "a/../../b.png"])
def test_a_report_takes_in_no_file_from_elsewhere(root, file):
    (root / "pictures").mkdir()
    (root / "results.json").write_text("{}")
    (root / "pictures" / "captions.json").write_text(json.dumps([{"file": file}]))
    with pytest.raises(ValueError, match=r"captions\.json names"):
        write_report(root)


def test_a_report_takes_in_no_link_to_a_text(root, outside):
    (root / "pictures").mkdir()
    (root / "results.json").write_text("{}")
    (root / "pictures" / "x.png").symlink_to(outside / "secret.txt")
    (root / "pictures" / "captions.json").write_text(json.dumps([{"file": "x.png"}]))
    with pytest.raises(ValueError, match="is not a PNG picture"):
        write_report(root)


def test_results_that_never_end_are_refused(root):
    (root / "results.json").write_text(NESTED)
    with pytest.raises(ValueError, match="is not valid JSON"):
        write_report(root)


# ---------------------------------------------------------------- settings and statistics


def code_as(place, root):
    text, values = f"${Harm(root).code}", {"labeled": "a", "unlabeled": "b", "output": "c"}
    return (
        values
        | {
            "a setting": {"device": text},
            "an item of a list": {"modes": ["paper", text]},
            "another file": {"labeled": "%../outside/secret.txt"},
            "an override": {"overrides": {"retinal_unet": {"train.json": {"max_epochs": text}}}},
            "a component": {"overrides": {"retinal_unet": {"train.json": {"optimizer": {"_target_": "os.system"}}}}},
        }[place]
    )


PLACES = ["a setting", "an item of a list", "another file", "an override", "a component"]


@pytest.mark.parametrize("place", PLACES)
def test_settings_of_other_people_are_data(root, place):
    values = code_as(place, root)
    with pytest.raises(ValueError, match="which MONAI would run as code"):
        Settings.from_dict(values)
    (root / "experiment.json").write_text(json.dumps({"settings": values}))
    for command in (
        ["synthesize", "--run", str(root), "--count", "1", "--output", str(root / "more")],
        ["experiment", "--config", str(root / "config.json"), "--output", str(root / "run")],
    ):
        (root / "config.json").write_text(json.dumps(values))
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, ValueError), result.output
        assert "as code" in str(result.exception)


def test_expressions_in_a_prior_are_text(root):
    text = f"${Harm(root).code}"
    content = {"mean": text, "std": text, "scaling": text, "offset": 0, "scale": 1, "segmentation_sha256": text}
    (root / "prior.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, TypeError)):
        UncertaintyPrior.load(root / "prior.json").sample([1])
    (root / "prior.json").write_text(json.dumps({"_target_": "os.system", "command": "touch witness"}))
    with pytest.raises(ValueError, match="is no uncertainty prior"):
        UncertaintyPrior.load(root / "prior.json")


def test_expressions_in_uncertainties_are_text(root):
    text = f"${Harm(root).code}"
    (root / "u.json").write_text(json.dumps({"images": {"a": text}, "segmentation_sha256": text}))
    with pytest.raises(ValueError, match="could not convert"):
        read_uncertainties(root / "u.json", [{"image": "a"}])


# ---------------------------------------------------------------- bundles of other people


@pytest.fixture
def bundle(root):
    """A sealed bundle with weights."""
    folder = install("retinal_unet", root)
    save_weights(network(), folder / "models" / "model.pt")
    seal(folder)
    return folder


def edited(name, change):
    def probe(bundle, outside):
        path = bundle / name
        content = json.loads(path.read_text())
        change(content, bundle.parent)
        path.write_text(json.dumps(content))

    return probe


def written(name, content):
    def probe(bundle, outside):
        (bundle / name).parent.mkdir(exist_ok=True, parents=True)
        (bundle / name).write_text(content)

    return probe


def exchanged_link(bundle, outside):
    (bundle / "LICENSE").unlink()
    (bundle / "LICENSE").symlink_to(outside / "secret.txt")


def exchanged_weights(bundle, outside):
    torch.manual_seed(1)
    save_weights(network(), bundle / "models" / "other.pt")
    (bundle / "models" / "other.pt").replace(bundle / "models" / "model.pt")


def appended(bundle, outside):
    with (bundle / SUMS).open("a") as file:
        file.write(f"{hashlib.sha256(b'secret').hexdigest()}  ../../outside/secret.txt\n")


INFERENCE = "configs/inference.json"
BUNDLES = {
    "an expression": (
        edited(INFERENCE, lambda c, root: c.update(batch_size=f"${Harm(root).code}")),
        "batch_size: runs the expression",
    ),
    "an expression in the metadata": (
        edited("configs/metadata.json", lambda c, root: c.update(version=f"${Harm(root).code}")),
        "version: runs the expression",
    ),
    "a foreign component": (
        edited(INFERENCE, lambda c, root: c.update(more={"_target_": "os.system", "command": "touch witness"})),
        "more::_target_: calls 'os.system'",
    ),
    "a loader that unpickles": (
        edited(INFERENCE, lambda c, root: c.update(more={"_target_": "torch.load", "weights_only": False})),
        "calls 'torch.load'",
    ),
    "a module that a known package imports": (
        edited(
            INFERENCE, lambda c, root: c.update(more={"_target_": "monai.bundle.scripts.os.system", "command": "x"})
        ),
        "calls 'monai.bundle.scripts.os.system'",
    ),
    "a command": (
        edited(INFERENCE, lambda c, root: c.update(more={"_target_": "monai.utils.misc.run_cmd", "cmd_list": ["x"]})),
        "more::_target_: calls 'monai.utils.misc.run_cmd'",
    ),
    "a command under another key": (
        edited(INFERENCE, lambda c, root: c.update({"more#_target_": "monai.utils.misc.run_cmd"})),
        "more#_target_: calls 'monai.utils.misc.run_cmd'",
    ),
    "a command that is added up": (
        edited("configs/train.json", lambda c, root: c.update({"+_target_": "run_cmd"})),
        "calls 'run_cmd'",
    ),
    "another bundle that is run": (
        edited(INFERENCE, lambda c, root: c.update(more={"_target_": "monai.bundle.run", "config_file": "x"})),
        "calls 'monai.bundle.run'",
    ),
    "a text that is written": (
        edited(INFERENCE, lambda c, root: c.update(more={"_target_": "unicorn_monai.system.files.write_text"})),
        "calls 'unicorn_monai.system.files.write_text'",
    ),
    "a debugger": (
        edited(INFERENCE, lambda c, root: c["network_def"].update(_mode_="debug")),
        "runs a component in the mode 'debug'",
    ),
    "a function of Python": (
        edited(INFERENCE, lambda c, root: c.update(more={"_target_": "open", "file": "witness", "mode": "w"})),
        "calls 'open'",
    ),
    "a configuration in capitals": (
        written("configs/TRAIN.JSON", "{\"a\": \"$__import__('os').system('touch witness')\"}"),
        "TRAIN.JSON: a: runs the expression",
    ),
    "a configuration among the texts": (
        written("docs/train.json", '{"a": {"_target_": "os.system", "command": "touch witness"}}'),
        "docs/train.json: a::_target_: calls 'os.system'",
    ),
    "a configuration among the texts, that does nothing": (
        written("docs/train.json", "{}"),
        "is no text and no picture",
    ),
    "a bundle among the texts": (
        written("docs/more/configs/inference.json", "{\"a\": \"$__import__('os').system('touch witness')\"}"),
        "docs/more/configs/inference.json: a: runs the expression",
    ),
    "a bundle elsewhere": (
        written("more/configs/Inference.Json", "{\"a\": \"$__import__('os').system('touch witness')\"}"),
        "more/configs/Inference.Json: a: runs the expression",
    ),
    "a configuration among the weights": (
        written("models/train.json", "{\"a\": \"$__import__('os').system('touch witness')\"}"),
        "models/train.json: a: runs the expression",
    ),
    "a log with code among the texts": (
        written("docs/logging.conf", "[handler_f]\nargs = (__import__('os').system('touch witness'),)\n"),
        "docs/logging.conf: '",
    ),
    "another file": (edited(INFERENCE, lambda c, root: c.update(more="%/etc/hostname")), "takes in another file"),
    "a path out of the folder": (
        edited(INFERENCE, lambda c, root: c.update(output_dir="$@bundle_root + '/../../outside'")),
        "leads out of the folder",
    ),
    "a base elsewhere": (edited(INFERENCE, lambda c, root: c.update(base_bundle="../evil")), "base_bundle: "),
    "a log elsewhere": (
        written("configs/logging.conf", "[handler_f]\nclass=FileHandler\nargs=('/tmp/log',)\n"),
        "class=FileHandler' logs to something else",
    ),
    "a log with code": (
        written("configs/logging.conf", "[handler_f]\nargs = (__import__('os').system('touch witness'),)\n"),
        "logs to something else",
    ),
    "a log with code in another place": (
        written("configs/logging.conf", "[handler_f]\nkwargs = __import__('os').system('touch witness') or {}\n"),
        "logs to something else",
    ),
    "a log with code in a format": (
        written("configs/logging.conf", "[formatter_f]\ndefaults = __import__('os').system('touch witness') or {}\n"),
        "logs to something else",
    ),
    "a module": (written("scripts/__init__.py", "open('witness', 'w')"), "scripts/__init__.py: may hold code"),
    "a configuration in YAML": (written("configs/train.yaml", "a: $open('witness', 'w')"), "may hold code"),
    "a broken configuration": (written("configs/more.json", NESTED), "is not valid JSON"),
    "a name that is not seen": (written("docs/a\nb.md", ""), r"docs/a\nb.md: has a name that is not seen"),
    "a link": (exchanged_link, "LICENSE: is a link to"),
    "a file more": (written("docs/more.md", "more"), "docs/more.md: is not listed in SHA256SUMS"),
    "a file less": (
        lambda bundle, outside: (bundle / "LICENSE").unlink(),
        "LICENSE: is listed in SHA256SUMS and is missing",
    ),
    "a changed setting": (
        edited(INFERENCE, lambda c, root: c.update(batch_size=1)),
        "configs/inference.json: was changed after it was sealed",
    ),
    "exchanged weights": (exchanged_weights, "models/model.pt: was changed"),
    "weights that contradict each other": (exchanged_weights, "contradict each other"),
    "no checksums": (lambda bundle, outside: (bundle / SUMS).unlink(), "SHA256SUMS: is missing"),
    "checksums of files elsewhere": (appended, "../../outside/secret.txt: is listed in SHA256SUMS and is missing"),
    "checksums that are none": (written(SUMS, "$(touch witness)\n"), "is no checksum"),
}


@pytest.mark.parametrize("probe", BUNDLES)
def test_a_changed_bundle_is_told_before_anything_in_it_is_parsed(root, outside, bundle, probe):
    assert findings(bundle) == []
    change, expected = BUNDLES[probe]
    change(bundle, outside)
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 1
    assert expected in result.output.replace("\n", " ")


def test_a_sealed_bundle_is_known_by_one_number(root, bundle):
    total = sha256(bundle / SUMS)
    assert seal(bundle) == total
    assert findings(bundle, total) == []
    assert CliRunner().invoke(app, ["verify", str(bundle), "--sums-sha256", total.upper()]).exit_code == 0
    written("docs/more.md", "more")(bundle, None)
    assert seal(bundle) != total  # whoever exchanges the files can seal them again
    assert any("not what its author sealed" in line for line in findings(bundle, total))


def test_a_bundle_with_code_is_not_sealed(root, bundle):
    written("scripts/x.py", "")(bundle, None)
    with pytest.raises(ValueError, match=r"Not sealed:\nscripts/x.py: may hold code"):
        seal(bundle)


def test_what_is_no_bundle_is_named(root):
    with pytest.raises(ValueError, match="is no bundle: no folder 'configs' in it"):
        findings(root)


# ---------------------------------------------------------------- versions


PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
# The first versions without a known way in: CVE-2026-24747; GHSA-wvpx-5qmp-46g3; CVE-2026-53995; CVE-2026-32711.
SAFE = {"torch": "2.10.0", "monai": "1.6.1", "mlflow": "3.17.2"}


@pytest.mark.parametrize("package", SAFE)
def test_versions_with_known_vulnerabilities_are_excluded(package):
    (wanted,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == package]
    assert wanted.specifier.contains(SAFE[package])
    major, minor, patch = map(int, SAFE[package].split("."))
    older = [(major, minor, patch - 1), (major, minor - 1, 99), (major - 1, 99, 99)]
    assert not any(wanted.specifier.contains(".".join(map(str, version))) for version in older if min(version) >= 0)


@pytest.mark.parametrize(("version", "safe"), [("2.4.4", False), ("2.4.5", True), ("3.0.1", False), ("3.0.2", True)])
def test_pydicom_is_one_of_the_two_lines_that_were_mended(version, safe):
    (wanted,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "pydicom"]
    assert wanted.specifier.contains(version) == safe


def test_there_are_enough_probes():
    tables = (ARCHIVES, HEADERS, LISTS, IMAGES, ENTITIES, PLACES, BUNDLES)
    assert sum(map(len, tables)) >= 40


def test_the_statement_about_bundles_is_there():
    text = " ".join((Path(__file__).parent.parent / "SECURITY.md").read_text().split())
    assert "A MONAI bundle configuration is code" in text
