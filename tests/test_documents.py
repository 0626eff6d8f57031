"""Every command of the documents runs as it is written, on data made for it, or is listed with the reason why not.

Tables and numbers: `test_tables_in_documents.py`; links, pictures, imports, lengths: `test_readme.py`. A new block, or
a new command within a line, that is neither listed nor runs here fails. Nothing is replaced but what makes a simulation
small (`SMALLER`, further options) and, in the slow test, the trainings.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from command_line import CliRunner
from data_prep.phantom import write_phantom
from oct_files import bscan, label, opt, picture, vol
from oct_files import save as save_dicom
from tests.bundle.test_bundle_readmes import ENVIRONMENT, ORDER
from tests.bundle.test_bundle_readmes import SMALLER as SHORTER
from tests.data_prep.test_converters import fake_source
from tests.data_prep.test_street_sources import make_acdc, make_cityscapes, photo
from tiny_networks import TINY
from unicorn_monai.bundle.installation import install
from unicorn_monai.cli import app
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.experiment import experiment

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "SECURITY.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "data_prep/README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
}
COMMAND = re.compile(r"(\$R|unicorn-monai|python\S*|pip|make|pytest|mlflow|torchrun|srun|source|cp|git)\s")
Block = tuple[str, str]  # document, command lines

LISTED = {  # what a command matches -> why it does not run here
    r"^make( |$)": "an installation, or the tests themselves",
    r"^(source|\. |pip install|python3.11 -m venv|grep |cp -r )": "an installation, or another environment",
    r"^pytest ": "the tests themselves",
    r"^mlflow( |$)": "a server",
    r"^unicorn-monai label": "another environment and a server; tests/monailabel, `make test-label`",
    r"^unicorn-monai benchmark --table-only": "the repository's cells; tests/benchmark/test_cells.py does it",
    r"^unicorn-monai demo": "the smallest takes 18 minutes; tests/experiment/test_experiment.py runs experiments",
    r"^unicorn-monai experiment .*(data/cityscapes|tiny.json)": "hours; the README's own runs below",
    r"^unicorn-monai (summary|clean|synthesize) .*(runs/|--write)": "a finished run; test_the_readme_on_your_own_data",
    r"^unicorn-monai import-weights old/": "weights of another library; tests/backbones/test_legacy.py",
    r"^unicorn-monai import-weights segformer": "needs transformers; tests/experiment/test_street_commands.py",
    r"^unicorn-monai check data/synthetic": "after trainings; tests/experiment/test_street_commands.py",
    r"^python -m data_prep\.compare_simulation": "needs real B-scans",
    r"^(S=|.*\$S )|^python -m data_prep\.home_oct real/|^unicorn-monai experiment .*runs/real": "needs real B-scans",
    r"^python -m benchmarks\.|^export OMP": "minutes to hours; tests/test_benchmarks.py",
    r"^python -m monai\.bundle run .*(streets/|RUN/|<name>)": "test_street_commands.py, test_bundle_readmes.py",
    r"^(R=|\$R )": "trainings; test_every_stage_by_hand",
    r"write_augmented": "within it",
    r"^python -m monai\.bundle run .*--scheduler": "after trainings; test_every_stage_by_hand",
    r"^python -c .*(stable_diffusion|segformer)": "needs diffusers; tests/experiment/test_street_commands.py",
    r"import torchvision": "another environment",
    r"^(torchrun|srun|#!|#SBATCH|host=|export RANK)|^\s+-": "several GPUs or a cluster; test_distributed.py",
    r"^python -m monai\.bundle run$|^git show": "the name of a program, or what a reader may look at",
    r"\.\.\.|\[--|^unicorn-monai (experiment|verify BUNDLE|seal BUNDLE)$": "a form, not a command",
    r"^unicorn-monai experiment --labeled gs:": "hours",
}


def is_listed(command: str) -> bool:
    """Whether a command is named above."""
    return any(re.search(pattern, command) for pattern in LISTED)


def blocks() -> list[Block]:
    """Every block of the documents that holds commands, continued lines joined, and every command within a line."""
    found = []
    for name, text in DOCUMENTS.items():
        for block in re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            lines = [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
            if any(COMMAND.match(line) for line in lines):
                found.append((name, "\n".join(lines)))
        plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        found += [(name, line) for line in re.findall(r"`([^`\n]+)`", plain) if COMMAND.match(f"{line} ")]
    return list(dict.fromkeys(found))


RUN = [(name, text) for name, text in blocks() if not all(map(is_listed, text.splitlines()))]


# ---------------------------------------------------------------- data for them


def labels_of(page: str) -> dict:
    """The label file that a page gives as an example."""
    return json.loads(re.search(r'\{"labels": \{"0": "vitreous".*\}', DOCUMENTS[page])[0].split("`")[0])


def meaning(labels: dict, k: int) -> np.ndarray:
    """A label image in the values of a label file."""
    found = {value: int(key) for key, value in labels.get("values", {}).items()}
    return np.vectorize(lambda v: found.get(v, v))(np.minimum(label(k), 2)).astype(np.uint8)


def images(root: Path, labels: dict, start: int, each: int = 1) -> None:
    """`images/` and `labels/` of four patients with some B-scans each; with labels {} without the second."""
    for k in range(4):
        for i in range(each):
            name = f"patient{k}/{i:02d}.png"
            picture(root / "images" / name, bscan(start + each * k + i))
            if labels:
                picture(root / "labels" / name, meaning(labels, start + each * k + i))


def own_scans(root: Path, labels: dict, each: int = 1) -> None:
    images(root / "scans/labelled", labels, 0, each)
    images(root / "scans/other", {}, 100, each)


def exports(root: Path, _: dict) -> None:
    pytest.importorskip("eyepy", reason="eyepy reads Heidelberg's exports: pip install 'unicorn-monai[heidelberg]'")
    for k in range(3):
        vol(root / f"EXPORTS/{k}.vol", patient=f"P-{k}", first=10 * k)


def dicom(root: Path, _: dict) -> None:
    for k in range(3):
        array = np.stack([bscan(10 * k + i) for i in range(2)])
        save_dicom(opt(2, array, PatientID=f"P-{k}", PatientIdentityRemoved="YES"), root / f"FOLDER/{k}.dcm")


def volumes(root: Path, labels: dict) -> None:
    import itk

    for k in range(3):
        array = np.stack([bscan(10 * k + i) for i in range(2)])
        truth = np.stack([meaning(labels, 10 * k + i) for i in range(2)])
        for kind, values, suffix in (("image", array, "_0000"), ("label", truth, "")):
            for name in (f"FOLDER/{kind}s/case_{k}.nii.gz", f"nnunet/{kind}sTr/case_{k}{suffix}.nii.gz"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), np.diag([0.012, 0.004, 0.12, 1])), root / name)
            folder = root / f"retouch/TRAIN00{k}"
            folder.mkdir(parents=True, exist_ok=True)
            itk.imwrite(itk.image_from_array(values), str(folder / f"{'oct' if kind == 'image' else 'reference'}.mhd"))


def colours(root: Path, labels: dict) -> None:
    for k in range(4):
        picture(root / f"FOLDER/images/drive{k}/0.png", photo(k))
        rows, columns = photo(k).shape[:2]
        values = np.array(Image.fromarray(meaning(labels, k)).resize((columns, rows), Image.Resampling.NEAREST))
        picture(root / f"FOLDER/labels/drive{k}/0.png", values)


def clinical(root: Path, _: dict) -> None:
    for name in ("DATASET", "SPECTRALIS_DATASET"):
        write_phantom(root / name, "spectralis", 3, 1, 64, split=(0.34, 0.33, 0.33))


MAKE: dict[str, Callable[[Path, dict], object]] = {  # what a block mentions -> what it needs
    "scans/labelled": own_scans,
    "EXPORTS": exports,
    "data_prep.dicom FOLDER": dicom,
    "data_prep.volumes FOLDER": volumes,
    "data_prep.image_folder FOLDER": lambda root, labels: images(root / "FOLDER", labels, 0),
    "data_prep.rgb_folder FOLDER": colours,
    "SPECTRALIS OUT ": lambda root, _: fake_source(root / "SPECTRALIS", subjects=7),
    "spectralis_healthy INPUT": lambda root, _: fake_source(root / "INPUT", subjects=7),
    "DATASET ": clinical,
    "CITYSCAPES ": lambda root, _: make_cityscapes(root / "CITYSCAPES"),
    "ACDC ": lambda root, _: make_acdc(root / "ACDC"),
}
SMALLER = {  # further options of simulations, which would be right but long as they are
    "data_prep.phantom": ["--subjects", "4", "--scans-per-subject", "1"],
    "data_prep.street_phantom": ["--drives", "12", "--frames", "1"],
}


class Begun(Exception):
    """An experiment has checked its settings and data, and begins."""


def run(line: str) -> None:
    """One command, in this process."""
    words = shlex.split(line.replace("SEED", "0"), comments=True)
    if words[0] == "unicorn-monai":
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0 or isinstance(done.exception, Begun), f"{line}\n{done.output}\n{done.exception}"
    elif words[:2] == ["python", "-c"]:
        subprocess.run([sys.executable, "-c", words[2]], env=ENVIRONMENT, check=True)
    else:
        assert words[:2] == ["python", "-m"], f"neither listed nor runnable: {line}"
        assert import_module(words[2]).main([*words[3:], *SMALLER.get(words[2], [])]) == 0, line


@pytest.fixture
def sandbox(tmp_path, monkeypatch) -> Path:
    """An empty working folder with a key of its own."""
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "key"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def prepared(sandbox: Path, page: str, text: str) -> None:
    """Make the inputs that a block names, and the page's label file."""
    labels = labels_of(page) if "labels.json" in text else {}
    if labels:
        (sandbox / "labels.json").write_text(json.dumps(labels))
    for mentioned, make in MAKE.items():
        if mentioned in text:
            make(sandbox, labels)


@pytest.mark.parametrize(("page", "text"), RUN, ids=[f"{page}: {text[:60]}" for page, text in RUN])
def test_the_commands_of_the_documents_run_as_written(sandbox, monkeypatch, page, text):
    def begin(self):
        raise Begun

    monkeypatch.setattr(experiment.Experiment, "run", begin)  # what comes before it has been checked
    prepared(sandbox, page, text)
    for line in text.splitlines():
        if not is_listed(line):
            for k, folder in enumerate(sandbox.glob("OUT*")):  # what the line before has made
                folder.rename(sandbox / f"{len(list(sandbox.iterdir()))}-{k}")
            run(line)


def test_what_is_listed_is_still_there():
    commands = [line for _, text in blocks() for line in text.splitlines()]
    assert [pattern for pattern in LISTED if not any(re.search(pattern, line) for line in commands)] == []
    assert len(RUN) > 15


PYTHON = re.search(r"^```python\n(.*?)^```", DOCUMENTS["README.md"], re.DOTALL | re.MULTILINE)[1]


@pytest.mark.slow
def test_the_readme_on_your_own_data(sandbox):
    page = "README.md"
    text = next(text for name, text in blocks() if name == page and "scans/labelled" in text)
    labels = labels_of(page)
    (sandbox / "labels.json").write_text(json.dumps(labels))
    own_scans(sandbox, labels, each=12)  # as many as the search for copies needs
    tiny = {name: files for name, files in TINY.items() if name != "style_transfer"}
    (sandbox / "tiny.json").write_text(
        json.dumps({"preset": "quick", "device": "cpu", "overrides": tiny, "features": {"iterations": 5}, "jobs": 1})
    )
    for line in text.splitlines():
        if not is_listed(line):
            smaller = line.replace("--size 256", "--size 64")
            run(f"{smaller} --config tiny.json --force" if "experiment" in line else smaller)
    for _, line in blocks():
        if re.match(r"unicorn-monai (clean|synthesize) .*runs/mine", line):
            run(line.replace("--count 5000", "--count 5"))
    for line in ("summary runs/mine", "report runs/mine", "summary runs/mine --trim docs/results/mine/results.json"):
        run(f"unicorn-monai {line}")
    assert check(sandbox / "data/clean", need_labels=True) == []
    assert len(datalist(sandbox / "data/more", "training", ("image", "label"))) == 5
    own = PYTHON.replace("runs/demo/data/labeled", "data/labelled").replace("runs/demo", "runs/mine")
    subprocess.run([sys.executable, "-c", own], env=ENVIRONMENT, check=True)
    with Image.open(sandbox / "first.png") as picture:
        assert (picture.size, picture.mode) == ((64, 64), "L")


@pytest.mark.slow
def test_every_stage_by_hand(sandbox):
    pages = [text for name, text in blocks() if name == "docs/bundles.md"]
    text = next(text for text in pages if text.startswith("R="))
    other = next(text for text in pages if "--scheduler" in text and text.startswith("python"))
    for name, device in (("A", "spectralis"), ("B", "home_oct")):
        write_phantom(sandbox / name, device, 6, 2, 32, split=(0.5, 0.25, 0.25))
    for bundle in ORDER:
        tiny, smaller = TINY.get(bundle, {}), SHORTER.get(bundle, {})
        settings = {file: tiny.get(file, {}) | smaller.get(file, {}) for file in tiny | smaller}
        install(bundle, sandbox / "bundles", "small", settings)
    script = f"set -e\n{text}\n{other.replace('epsilon', 'v_prediction')}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=sandbox, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert (sandbox / "retrained" / "model.pt").is_file()
    assert len(datalist(sandbox / "other_sampler", "training")) == len(datalist(sandbox / "synthetic", "training"))
