"""The real server on loopback, driven over HTTP as a viewer would, through a whole cycle; then what it refuses."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("monailabel", reason="make test-label runs these in an environment of their own")
requests = pytest.importorskip("requests")

from unicorn_monai.images.files import read_array  # noqa: E402
from unicorn_monai.monailabel.app_folder import make_app  # noqa: E402
from unicorn_monai.monailabel.client import Unknown  # noqa: E402
from unicorn_monai.report.recommended import networks_of  # noqa: E402
from unicorn_monai.report.results import Results, read  # noqa: E402
from unicorn_monai.system.weights import read_metadata, sha256  # noqa: E402
from world import SIZE, World, bundle_masks, make_world  # noqa: E402

PATIENCE = 600  # seconds for whatever runs in a process of its own


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("label"))


class Server:
    """A running server and how to speak with it."""

    def __init__(self, process: subprocess.Popen, url: str, app: Path, log: Path) -> None:
        self.process, self.url, self.app, self.log = process, url, app, log

    def call(self, method: str, path: str, status: int = 200, **more):
        answer = requests.request(method, self.url + path, timeout=PATIENCE, **more)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        return answer

    def infos(self) -> dict[str, dict]:
        objects = self.call("GET", "/datastore/?output=all").json()["objects"]
        return {name: entry["image"]["info"] for name, entry in objects.items()}

    def told(self) -> str:
        """The end of the server's log, with what its processes wrote."""
        return "".join(self.log.read_text().splitlines(keepends=True)[-60:])

    def wait(self, what: str, done: Callable[[], object]) -> object:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.told()
            result = done()
            if result:
                return result
            time.sleep(1)
        raise AssertionError(f"{what} did not happen within {PATIENCE} s\n{self.told()}")

    def finish(self, task: str) -> None:
        """Wait for a task in a process of its own."""
        status = lambda: self.call("GET", task).json()["status"]  # noqa: E731
        ended = self.wait(f"the end of {task}", lambda: status() not in ("SUBMITTED", "RUNNING") and status())
        assert ended == "DONE", f"{task} ended with {ended}\n{self.told()}"


@contextmanager
def served(app: Path, *words: str) -> Iterator[Server]:
    """A server started by ``python -m WORDS --app APP --port PORT``, on loopback, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, log = [sys.executable, "-m", *words, "--app", str(app), "--port", str(port)], app.with_name("log.txt")
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=app.parent, start_new_session=True
        )
    running = Server(process, f"http://127.0.0.1:{port}", app, log)

    def up() -> bool:
        try:
            return requests.get(f"{running.url}/info/", timeout=10).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        running.wait("the start of the server", up)
        yield running
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def server(world, tmp_path_factory) -> Iterator[Server]:
    app = tmp_path_factory.mktemp("server") / "app"
    words = ["--studies", str(world.studies), "--run", str(world.run), "--allow-host", "label.example"]
    with served(app, "unicorn_monai.cli", "label", *words) as running:
        yield running


def image_in(answer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def nifti_in(answer, folder: Path) -> nib.Nifti1Image:
    path = folder / "answer.nii.gz"
    path.write_bytes(answer.content)
    return nib.load(path)


def test_a_whole_cycle(world, server, tmp_path):
    before = {path: sha256(path) for path in world.run.rglob("*.pt")}
    names = sorted(world.truth)
    assert "Everybody who reaches" not in server.log.read_text()  # nobody does but this machine

    info = server.call("GET", "/info/").json()
    assert set(info["models"]) == {"retinal_unet", "synthesis"}
    assert (info["models"]["retinal_unet"]["type"], info["models"]["synthesis"]["type"]) == ("segmentation", "others")
    assert set(info["trainers"]) == {"retinal_unet"}
    assert set(info["scoring"]) == {"uncertainty"}
    assert set(info["strategies"]) == {"most_uncertain"}
    assert info["labels"] == info["models"]["retinal_unet"]["labels"] or len(info["labels"]) == 9
    assert (info["datastore"]["total"], info["datastore"]["completed"]) == (12, 0)

    # Scored at the start, by a process of its own; nothing is left to do afterwards.
    server.wait("scoring", lambda: all("uncertainty" in info for info in server.infos().values()))
    scores = {name: info["uncertainty"] for name, info in server.infos().items()}
    assert all(0 < u < 1 for u in scores.values())
    idle = lambda: requests.get(f"{server.url}/scoring/?check_if_running=true", timeout=60).status_code == 404  # noqa: E731
    server.wait("the end of scoring", idle)
    again = server.call("POST", "/scoring/uncertainty?run_sync=true", json={"device": "cpu"}).json()
    assert (again["total"], again["skipped"], again["executed"]) == (12, 12, 0)

    # The most uncertain first, then the next one.
    order = sorted(names, key=lambda name: -scores[name])
    served = [server.call("POST", "/activelearning/most_uncertain", json={}).json() for _ in range(3)]
    assert [sample["id"] for sample in served] == order[:3]
    assert served[0]["uncertainty"] == scores[order[0]]

    # Masks are those of the bundle, pixel for pixel, and keep the geometry of their image.
    masks = bundle_masks(server.app / "model" / "retinal_unet", world.studies, tmp_path)
    for name in names:
        told = server.call("POST", f"/infer/retinal_unet?image={name}&output=json").json()
        assert told["uncertainty"] == pytest.approx(scores[name], abs=1e-6)
        assert list(told["label_names"].values()) == list(range(1, 10))
        answer = server.call("POST", f"/infer/retinal_unet?image={name}&output=image")
        if (world.studies / f"{name}.png").is_file():
            assert np.array_equal(image_in(answer), masks[name])
            continue
        mask, image = nifti_in(answer, tmp_path), nib.load(world.studies / f"{name}.nii.gz")
        assert mask.get_data_dtype() == np.uint8
        assert np.array_equal(np.asarray(mask.dataobj)[..., 0], masks[name])
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)
    entropy = server.call(
        "POST", f"/infer/retinal_unet?image={names[1]}&output=image", data={"params": '{"map": "entropy"}'}
    )
    assert image_in(entropy).mean() / 255 == pytest.approx(scores[names[1]], abs=0.002)
    upload = {"file": (f"{names[1]}.png", (world.studies / f"{names[1]}.png").read_bytes())}
    answer = server.call("POST", "/infer/retinal_unet?output=image", files=upload)
    assert np.array_equal(image_in(answer), masks[names[1]])

    # MONAI Label's own client, which 3D Slicer's module uses, gets the same.
    from monailabel.client import MONAILabelClient

    viewer = MONAILabelClient(server.url, tmpdir=str(tmp_path))
    assert viewer.info()["name"] == "unicorn_monai"
    assert not viewer.auth_enabled()
    file, told = viewer.infer("retinal_unet", names[0], {"device": "cpu", "result_extension": ".nrrd"})
    import nrrd

    assert np.array_equal(nrrd.read(file)[0][..., 0], masks[names[0]])
    assert told["uncertainty"] == pytest.approx(scores[names[0]], abs=1e-6)
    assert viewer.next_sample("most_uncertain", {})["id"] == order[3]

    # Submit four labels, one of them a volume in the axes of a picture, as 3D Slicer would.
    chosen = [*[name for name in order if not (world.studies / f"{name}.png").is_file()][:3], names[1]]
    for name in chosen:
        label = world.truth[name]
        if label.suffix == ".png":
            nib.save(nib.Nifti1Image(read_array(label).T[..., None], np.eye(4)), tmp_path / "slicer.nii.gz")
            label = tmp_path / "slicer.nii.gz"
        server.call(
            "PUT", f"/datastore/label?image={name}&tag=final", files={"label": (label.name, label.read_bytes())}
        )
    for name in chosen:
        kept = next((world.studies / "labels" / "final").glob(f"{name}.*"))
        assert np.array_equal(read_array(kept), read_array(world.truth[name]))
    assert server.call("GET", "/info/").json()["datastore"]["completed"] == 4
    # One size of image in a training: the picture is left out again.
    server.call("DELETE", f"/datastore/label?id={names[1]}&tag=final")

    # Train some epochs in the app's copy; the run stays as it was.
    weights = sha256(server.app / "model" / "retinal_unet" / "models" / "model.pt")
    settings = {"device": "cpu", "max_epochs": 3, "val_split": 0.34}
    server.call("POST", "/train/retinal_unet", json=settings)
    server.finish("/train/")
    trained = sha256(server.app / "model" / "retinal_unet" / "models" / "model.pt")
    assert trained != weights
    assert {path: sha256(path) for path in before} == before
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{server.app / 'mlflow.db'}")
    run = client.search_runs([client.get_experiment_by_name("monailabel").experiment_id])[0]
    assert run.info.status == "FINISHED"
    assert {"train_loss", "mean_iou"} <= set(run.data.metrics)

    # The scores follow the weights.
    left = [name for name in names if name not in chosen[:3]]
    new = server.wait(
        "scoring with the new weights",
        lambda: all(server.infos()[name]["uncertainty_weights"] == trained for name in left) and server.infos(),
    )
    assert any(abs(new[name]["uncertainty"] - scores[name]) > 1e-6 for name in left)
    sample = server.call("POST", "/activelearning/most_uncertain", json={}).json()
    assert sample["id"] in left
    assert sample["uncertainty"] == new[sample["id"]]["uncertainty"]

    # Synthesis: of a labelled study, of an uploaded label map, stored, and many at once in the background.
    asked = {"params": json.dumps({"seed": 7, "uncertainty": 0.2, "weight": 1.5, "device": "cpu", "store": True})}
    told = server.call("POST", f"/infer/synthesis?image={chosen[0]}&output=json", data=asked).json()
    assert (told["seed"], told["uncertainty"], told["weight"], told["synthetic"]) == (7, 0.2, 1.5, True)
    assert set(told["models"]) == {"autoencoder", "diffusion", "semantic", "uncertainty", "segmentation"}
    study = told["study"]
    assert server.infos()[study]["synthetic"]["seed"] == 7
    pixels = read_array(world.studies / f"{study}.nii.gz")
    assert pixels.shape == (SIZE, SIZE)
    kept = read_array(world.studies / "labels" / "final" / f"{study}.nii.gz")
    assert np.array_equal(kept, read_array(world.truth[chosen[0]]))
    Image.fromarray(read_array(world.truth[chosen[0]])).save(tmp_path / "label.png")
    upload = {"file": ("label.png", (tmp_path / "label.png").read_bytes())}
    answer = server.call(
        "POST",
        "/infer/synthesis?output=image",
        data=asked | {"params": '{"seed": 7, "uncertainty": 0.2, "weight": 1.5, "device": "cpu"}'},
        files=upload,
    )
    assert np.array_equal(image_in(answer), pixels)
    told = server.call("POST", "/infer/synthesis?output=json", files=upload).json()
    assert told["uncertainty_sampled"]
    assert 0 <= told["uncertainty"] <= 1
    server.call("POST", "/batch/infer/synthesis?images=labeled", json={"device": "cpu"})
    server.finish("/batch/infer/")
    assert sum("synthetic" in info for info in server.infos().values()) == 1 + 3
    for _ in range(3):
        assert "synthetic" not in server.call("POST", "/activelearning/most_uncertain", json={}).json()


def test_a_page_of_another_site_cannot_use_the_server(server):
    for name in ("localhost", "label.example:443"):
        server.call("GET", "/info/", headers={"Host": name})
    told = server.call("GET", "/info/", 421, headers={"Host": "evil.example"}).json()["detail"]
    assert "not called 'evil.example'; expected one of: 127.0.0.1, ::1, label.example, localhost" in told
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null", "Content-Type": "text/plain"}):
        server.call("POST", "/activelearning/most_uncertain", 403, data="{}", headers=headers)
    server.call("POST", "/activelearning/most_uncertain", 415, data="{}", headers={"Content-Type": "text/plain"})


@pytest.mark.parametrize("told", [True, False], ids=["of a length that is told", "in pieces"])
def test_a_large_body_does_not_keep_the_server(server, told):
    body = b'{"a": [' + b'{"b": 1}, ' * 6_000_000 + b"1]}"
    pieces = body if told else (body[i : i + 2**16] for i in range(0, len(body), 2**16))
    headers, start = {"Content-Type": "application/json"}, time.monotonic()
    answer = server.call("POST", "/activelearning/most_uncertain", 413, data=pieces, headers=headers)
    assert "expected at most 1000000 bytes of settings" in answer.json()["detail"]
    assert time.monotonic() - start < 10


# ---------------------------------------------------------------- what the server refuses, in this process


@pytest.fixture(scope="module")
def client(world, tmp_path_factory):
    """The web application without a port: three studies, one of them labelled."""
    folder = tmp_path_factory.mktemp("refused")
    studies = folder / "studies"
    studies.mkdir()
    names = [name for name in sorted(world.truth) if (world.studies / f"{name}.nii.gz").is_file()][:2]
    for name, source in zip(("oct_1", "oct_2"), names, strict=True):
        (studies / f"{name}.nii.gz").write_bytes((world.studies / f"{source}.nii.gz").read_bytes())
    Image.fromarray(np.zeros((SIZE + 1, SIZE), np.uint8)).save(studies / "odd.png")
    (studies / "broken.png").write_bytes(b"no image")
    make_app(folder / "app", world.run)
    from unicorn_monai.monailabel.launch import configure

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_AUTO_UPDATE_SCORING", "false")
        configure(folder / "app", studies)
        from fastapi.testclient import TestClient

        from unicorn_monai.monailabel.server import build

        with TestClient(build(), raise_server_exceptions=False) as client:
            label = world.truth[names[0]].read_bytes()
            done = client.put("/datastore/label?image=oct_1&tag=final", files={"label": ("l.nii.gz", label)})
            assert done.status_code == 200, done.text
            yield client


def black() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    return file.getvalue()


def small_label(array: np.ndarray) -> dict:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "png")
    return {"label": ("label.png", data.getvalue())}


def nrrd_label(pixels: int, told: int, encoding: str = "raw") -> dict:
    """An NRRD file whose header tells another number of pixels than it holds."""
    content = bytes(pixels) if encoding == "raw" else gzip.compress(bytes(pixels))
    header = f"NRRD0004\ntype: unsigned char\ndimension: 2\nsizes: {told // SIZE} {SIZE}\nencoding: {encoding}\n\n"
    return {"files": {"label": ("l.nrrd", header.encode() + content)}}


def params(**settings) -> dict:
    return {"data": {"params": json.dumps(settings)}}


REFUSED = {
    "expression in the settings": (
        "POST",
        "/infer/retinal_unet?image=oct_2",
        params(device="$1"),
        400,
        "would evaluate",
    ),
    "reference in the settings": ("POST", "/train/retinal_unet", {"json": {"device": "@x"}}, 400, "would evaluate"),
    "macro in a nested setting": (
        "POST",
        "/scoring/uncertainty",
        {"json": {"a": [{"b": "%x"}]}},
        400,
        "would evaluate",
    ),
    "expression in an id": ("POST", "/infer/retinal_unet?image=$oct_2", {}, 400, "would evaluate"),
    "expression in a batch": ("POST", "/batch/infer/synthesis", {"json": {"device": "$x"}}, 400, "would evaluate"),
    "expression in a strategy": (
        "POST",
        "/activelearning/most_uncertain",
        {"json": {"c": "$x"}},
        400,
        "would evaluate",
    ),
    "expression with a label": (
        "PUT",
        "/datastore/label?image=oct_2",
        {"files": small_label(np.zeros((2, 2), np.uint8)), **params(a="$x")},
        400,
        "would evaluate",
    ),
    "unknown model": (
        "POST",
        "/infer/vista?image=oct_2",
        {},
        404,
        "There is no model 'vista'; there are: retinal_unet",
    ),
    "unknown trainer": ("POST", "/train/synthesis", {"json": {}}, 404, "There is no trainer 'synthesis'"),
    "unknown scoring method": ("POST", "/scoring/dice", {"json": {}}, 404, "no scoring method 'dice'"),
    "unknown strategy": ("POST", "/activelearning/random", {"json": {}}, 404, "no strategy 'random'"),
    "unknown batch model": ("POST", "/batch/infer/vista", {"json": {}}, 404, "no model 'vista'"),
    "unknown study": ("POST", "/infer/retinal_unet?image=oct_9", {}, 404, "There is no image 'oct_9'"),
    "unknown study to label": (
        "PUT",
        "/datastore/label?image=oct_9",
        {"files": small_label(np.zeros((2, 2), np.uint8))},
        404,
        "no image 'oct_9'",
    ),
    "unknown image to read": ("GET", "/datastore/image?image=oct_9", {}, 404, "no image 'oct_9'"),
    "no label to read": ("GET", "/datastore/label?label=oct_2&tag=final", {}, 404, "NOT Found"),
    "no label to tell about": (
        "GET",
        "/datastore/label/info?label=oct_2&tag=final",
        {},
        404,
        "There is no label of 'oct_2' with the tag 'final'",
    ),
    "no label to note something about": (
        "PUT",
        "/datastore/label/info?label=oct_1&tag=mine",
        {"data": {"info": "{}"}},
        404,
        "There is no label of 'oct_1' with the tag 'mine'; there are: final",
    ),
    "no label to note something about, by the old address": (
        "PUT",
        "/datastore/updatelabelinfo?label=oct_2&tag=final",
        params(a=1),
        404,
        "There is no label of 'oct_2'",
    ),
    "no label to delete": ("DELETE", "/datastore/label?id=oct_2&tag=final", {}, 404, "There is no label of 'oct_2'"),
    "file of the server": ("POST", "/infer/retinal_unet?image=/etc/hostname", {}, 404, "There is no image"),
    "file of the server in the settings": (
        "POST",
        "/infer/retinal_unet?image=oct_2",
        params(image="/etc/hostname"),
        400,
        r"The settings hold ['image']",
    ),
    "tag that leaves the folder": (
        "PUT",
        "/datastore/label?image=oct_2&tag=../x",
        {"files": small_label(np.zeros((2, 2), np.uint8))},
        400,
        "The label tag '../x' cannot be used",
    ),
    "id that leaves the folder": (
        "PUT",
        "/datastore/image?image=../x",
        {"files": {"file": ("a.png", b"x")}},
        400,
        "The image id '../x' cannot",
    ),
    "id of another image": (
        "PUT",
        "/datastore/image?image=oct_1",
        {"files": {"file": ("a.png", black())}},
        400,
        "There is another image 'oct_1', whose labels would become this one's",
    ),
    "no image at all": ("POST", "/infer/retinal_unet", {}, 400, "There is nothing to work on"),
    "settings that are no JSON": (
        "POST",
        "/infer/retinal_unet?image=oct_2",
        {"data": {"params": "{"}},
        400,
        "a JSON object",
    ),
    "settings that are a list": (
        "POST",
        "/infer/retinal_unet?image=oct_2",
        {"data": {"params": "[1]"}},
        400,
        "JSON object",
    ),
    "device": ("POST", "/infer/retinal_unet?image=oct_2", params(device="tpu"), 400, "'device' is 'tpu'; expected one"),
    "map": (
        "POST",
        "/infer/retinal_unet?image=oct_2",
        params(map="variance"),
        400,
        "'map' is 'variance'; expected one of",
    ),
    "format": (
        "POST",
        "/infer/retinal_unet?image=oct_2",
        params(result_extension=".exe"),
        400,
        "'result_extension' is",
    ),
    "size the network cannot take": ("POST", "/infer/retinal_unet?image=odd", {}, 400, "sides that are multiples of 2"),
    "broken image": ("POST", "/infer/retinal_unet?image=broken", {}, 400, "Cannot read"),
    "broken upload": (
        "POST",
        "/infer/retinal_unet",
        {"files": {"file": ("a.png", b"no image")}},
        400,
        "Cannot read",
    ),
    "label of another size": (
        "PUT",
        "/datastore/label?image=oct_2",
        {"files": small_label(np.zeros((2, 2), np.uint8))},
        400,
        "expected one size",
    ),
    "unknown label values": (
        "PUT",
        "/datastore/label?image=oct_2",
        {"files": small_label(np.full((SIZE, SIZE), 77, np.uint8))},
        400,
        "holds [77]; expected 0 to 9",
    ),
    "label that is no image": (
        "PUT",
        "/datastore/label?image=oct_2",
        {"files": {"label": ("l.png", b"x")}},
        400,
        "Cannot read",
    ),
    "label of a format that loses values": (
        "PUT",
        "/datastore/label?image=oct_2",
        {"files": {"label": ("l.jpg", b"x")}},
        400,
        "not read here",
    ),
    "image that is none": (
        "PUT",
        "/datastore/image?image=new",
        {"files": {"file": ("a.png", b"x")}},
        400,
        "Cannot read",
    ),
    "synthesis without a label": ("POST", "/infer/synthesis?image=oct_2", {}, 404, "There is no label of 'oct_2'"),
    "uncertainty out of range": ("POST", "/infer/synthesis?image=oct_1", params(uncertainty=1.5), 400, "from 0 to 1"),
    "negative seed": (
        "POST",
        "/infer/synthesis?image=oct_1",
        params(seed=-1),
        400,
        "'seed' is '-1'; expected a whole number",
    ),
    "label map of another size": (
        "POST",
        "/infer/synthesis",
        {"files": {"file": small_label(np.zeros((16, 16), np.uint8))["label"]}},
        400,
        "the networks of this run make (32, 32)",
    ),
    # Of tasks in a process of their own, when the request arrives.
    "epochs": ("POST", "/train/retinal_unet", {"json": {"max_epochs": 0}}, 400, "'max_epochs' is '0'"),
    "epochs, among all trainers": (
        "POST",
        "/train/",
        {"json": {"retinal_unet": {"max_epochs": 0}}},
        400,
        "'max_epochs' is '0'",
    ),
    "no settings of a trainer": ("POST", "/train/", {"json": {"retinal_unet": 3}}, 400, "are '3'; expected a JSON"),
    "too few labels": ("POST", "/train/retinal_unet", {"json": {}}, 400, "1 studies have a submitted label"),
    "device of a training": ("POST", "/train/retinal_unet", {"json": {"device": "tpu"}}, 400, "'device' is 'tpu'"),
    "device of a scoring": ("POST", "/scoring/uncertainty", {"json": {"device": "tpu"}}, 400, "'device' is 'tpu'"),
    "device of all scorings": ("POST", "/scoring/", {"json": {"uncertainty": {"device": 7}}}, 400, "'device' is '7'"),
    "device of a batch": ("POST", "/batch/infer/retinal_unet", {"json": {"device": "tpu"}}, 400, "'device' is 'tpu'"),
    "weight of a batch": ("POST", "/batch/infer/synthesis", {"json": {"weight": -1}}, 400, "'weight' is '-1'"),
    "size of a batch": (
        "POST",
        "/batch/infer/synthesis",
        {"json": {"max_batch_size": "all"}},
        400,
        "'max_batch_size' is 'all'",
    ),
    "unknown study in a batch": (
        "POST",
        "/batch/infer/retinal_unet",
        {"json": {"images": ["oct_1", "oct_9"]}},
        404,
        "There is no image 'oct_9'",
    ),
    "tag of a batch": ("POST", "/batch/infer/retinal_unet", {"json": {"label_tag": "../x"}}, 400, "'../x' cannot be"),
    "nothing measured": ("POST", "/activelearning/most_uncertain", {"json": {}}, 400, "has been measured yet"),
    "pixels that a header lacks": (
        "PUT",
        "/datastore/label?image=oct_2",
        nrrd_label(SIZE**2 + SIZE, SIZE**2),
        400,
        "Cannot read the label map as NRRD (Size of the data",
    ),
    "pixels that a file lacks": (
        "PUT",
        "/datastore/label?image=oct_2",
        nrrd_label(SIZE**2, 100 * SIZE**2),
        400,
        "its header tells 102400 pixels). Expected a label map of the 1024 pixels of its image",
    ),
    "pixels without end": (
        "PUT",
        "/datastore/label?image=oct_2",
        nrrd_label(50_000_000, SIZE**2, "gzip"),
        400,
        "it holds more than 8192 bytes of pixels",
    ),
    "a file that ends before it begins": (
        "PUT",
        "/datastore/label?image=oct_2",
        {"files": {"label": ("l.nrrd", b"\n")}},
        400,
        "Cannot read the label map as NRRD",
    ),
    "a name that is too long": (
        "PUT",
        "/datastore/label?image=oct_2",
        {"files": {"label": (f"l.{'x' * 300}", b"x")}},
        400,
        "expected at most 200 characters",
    ),
    "no file": ("PUT", "/datastore/label?image=oct_2", {}, 422, "'body label': Field required"),
    "tables in tables": (
        "POST",
        "/activelearning/most_uncertain",
        {"data": '{"a":' * 900 + "1" + "}" * 900, "headers": {"content-type": "application/json"}},
        400,
        "more than 20 deep",
    ),
    "lists in lists without end": (
        "POST",
        "/infer/retinal_unet?image=oct_2",
        {"data": {"params": "[" * 100_000}},
        400,
        "expected a JSON object",
    ),
    "a number that is none": (
        "PUT",
        "/datastore/image/info?image=oct_2",
        {"data": {"info": '{"uncertainty": NaN}'}},
        400,
        "expected a JSON object",
    ),
    "a text": (
        "POST",
        "/train/retinal_unet",
        {"data": "{}", "headers": {"content-type": "text/plain"}},
        415,
        "The Content-Type is text/plain",
    ),
    "another site's name": ("GET", "/info/", {"headers": {"host": "evil.example"}}, 421, "not called 'evil.example'"),
    "another site's page": (
        "DELETE",
        "/datastore/image?id=oct_1",
        {"headers": {"origin": "http://evil.example"}},
        403,
        "may not use this server",
    ),
    "a token without passwords": ("POST", "/auth/token", {}, 400, "asks for no password"),
    "DICOM of no DICOM": ("POST", "/infer/retinal_unet?image=oct_2&output=dicom_seg", {}, 400, "'dicom_seg' needs"),
    "an endpoint that is left out": ("GET", "/proxy/dicom/x", {}, 404, "Not Found"),
}


@pytest.mark.parametrize(("method", "path", "sent", "status", "message"), REFUSED.values(), ids=REFUSED)
def test_mistakes_are_told_in_a_sentence(client, method, path, sent, status, message):
    answer = client.request(method, path, **sent)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU to tell of")
def test_without_a_gpu_nothing_is_told_of_one(client):
    answer = client.get("/logs/gpu")
    assert answer.status_code == 404
    assert "has no nvidia-smi" in answer.json()["detail"]


def test_one_broken_image_does_not_keep_the_others_from_being_measured(client):
    done = client.post("/scoring/uncertainty?run_sync=true", json={"device": "cpu"})
    assert done.status_code == 200, done.text
    assert set(done.json()["scores"]) == {"oct_2"}
    assert set(done.json()["failed"]) == {"odd", "broken"}
    assert client.post("/activelearning/most_uncertain", json={}).json()["id"] == "oct_2"
    again = client.post("/scoring/uncertainty?run_sync=true", json={"device": "cpu"}).json()
    assert (again["executed"], "failed" in again) == (0, False)


def test_images_of_one_seed_are_studies_of_their_own(client):
    def stored(**settings) -> str:
        asked = params(seed=1, store=True, device="cpu", **settings)
        answer = client.post("/infer/synthesis?image=oct_1&output=json", **asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["study"]

    first, other, again = stored(uncertainty=0.1), stored(uncertainty=0.9), stored(uncertainty=0.1)
    assert first == again != other
    told = {name: client.get(f"/datastore/image/info?image={name}").json()["synthetic"] for name in (first, other)}
    assert (told[first]["uncertainty"], told[other]["uncertainty"]) == (0.1, 0.9)
    for name in (first, other):
        assert client.delete(f"/datastore/image?id={name}").status_code == 200


def test_what_was_labelled_can_be_downloaded(client, tmp_path):
    from unicorn_monai.monailabel.studies import Studies  # imports MONAI Label, which reads its environment then

    note = client.put("/datastore/label/info?label=oct_1&tag=final", data={"info": '{"checked": true}'})
    assert note.status_code == 200, note.text
    assert client.get("/datastore/label/info?label=oct_1&tag=final").json()["checked"] is True
    names = zipfile.ZipFile(io.BytesIO(client.get("/datastore/dataset").content)).namelist()
    assert {"image/oct_1.nii.gz", "label/oct_1.nii.gz", "metadata.json"} == set(names)
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(Unknown, match="No study has a submitted label yet"):
        Studies(str(tmp_path), ["vitreous", "RNFL"]).get_dataset_archive(None)


def test_files_of_other_programs_are_no_studies(tmp_path):
    from unicorn_monai.monailabel.studies import Studies

    for name in ("a.png", "._a.png"):
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(tmp_path / name)
    assert Studies(str(tmp_path), ["vitreous", "RNFL"]).list_images() == ["a"]


def test_a_training_takes_studies_of_one_size(client, world):
    sizes = (SIZE, SIZE // 2)
    for i, size in enumerate(sizes):
        pixels = io.BytesIO()
        Image.fromarray(np.zeros((SIZE, size), np.uint8)).save(pixels, "png")
        image = {"file": (f"size_{i}.png", pixels.getvalue())}
        assert client.put(f"/datastore/image?image=size_{i}", files=image).status_code == 200
        done = client.put(f"/datastore/label?image=size_{i}", files=small_label(np.zeros((SIZE, size), np.uint8)))
        assert done.status_code == 200, done.text
    answer = client.post("/train/retinal_unet", json={})
    for i, _ in enumerate(sizes):
        client.delete(f"/datastore/image?id=size_{i}")
    assert answer.status_code == 400
    assert "have the sizes 32 x 32 ('" in answer.json()["detail"]
    assert "32 x 16 ('size_1.png'); a training needs one size" in answer.json()["detail"]


def test_a_damaged_server_says_so_as_its_own_fault(client, world):
    from monailabel.interfaces.utils.app import app_instance

    prior = Path(app_instance().app_dir) / "generator" / "retinal_unet" / "models" / "prior_zscore.json"
    text = prior.read_text()
    prior.write_text("{}")
    try:
        app_instance().tasks_of("infer")["synthesis"]._loaded.clear()
        answer = client.post("/infer/synthesis?image=oct_1", **params(device="cpu"))
        assert answer.status_code == 500
        assert "is no uncertainty prior" in answer.json()["detail"]
    finally:
        prior.write_text(text)


# ---------------------------------------------------------------- the folder of the app, and the command


def test_an_app_goes_on_with_its_own_run_only(world, tmp_path):
    content = make_app(tmp_path / "app", world.run, "lower_bound")
    assert content["labels"][0] == "vitreous"
    served = tmp_path / "app" / "model" / "retinal_unet" / "models"
    assert sha256(served / "model.pt") == sha256(world.run / "bundles" / "retinal_unet" / "models" / "model.pt")
    for name in ("resume.pt", "*last.pt", "*_before.pt", "latents", "uncertainties.json"):
        assert not list((tmp_path / "app").rglob(name)), name
    (served / "model.pt").write_bytes(b"trained on")
    assert make_app(tmp_path / "app", None) == make_app(tmp_path / "app", world.run) == content
    assert (served / "model.pt").read_bytes() == b"trained on"
    with pytest.raises(ValueError, match="was made from the run"):
        make_app(tmp_path / "app", tmp_path)
    with pytest.raises(ValueError, match="started with the weights 'lower_bound', not 'unicorn'"):
        make_app(tmp_path / "app", None, "unicorn")


@pytest.mark.parametrize("setup", [None, "lower_bound", "unicorn"])
def test_all_files_of_the_served_weights_are_those_asked_for(world, tmp_path, setup):
    make_app(tmp_path / "app", world.run, setup)
    # which one a run this small recommends differs between machines
    setup = setup or read(world.run / "results.json", Results).recommendation.setup or "unicorn+real"
    source = networks_of(world.run)[setup].parent
    served = tmp_path / "app" / "model" / "retinal_unet" / "models"
    for name in ("model.pt", "model.safetensors", "model.json"):
        assert sha256(served / name) == sha256(source / name), name
    known_by = {read_metadata(served / name)["tensors_sha256"] for name in ("model.pt", "model.safetensors")}
    assert len(known_by) == 1


def test_another_address_than_loopback_is_warned_of(world, tmp_path):
    words = ["unicorn_monai.cli", "label", "--studies", str(world.studies), "--run", str(world.run)]
    words += ["--app", str(tmp_path / "app"), "--host", "192.0.2.1"]  # of no machine: what follows the warning fails
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode != 0
    assert "Everybody who reaches 192.0.2.1:8000 can read, change and delete the studies" in done.stdout + done.stderr
    assert "no authentication unless MONAI_LABEL_AUTH_ENABLE" in (done.stdout + done.stderr).replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--studies", "/nowhere"], "The studies '/nowhere' are no folder"),
        (["--studies", "STUDIES"], "Give a finished run by --run"),
        (["--studies", "STUDIES", "--run", "STUDIES"], "is no finished run"),
        (
            ["--studies", "STUDIES", "--run", "RUN", "--network", "best"],
            "no segmentation weights 'best'; expected one of",
        ),
        (
            ["--studies", "SYNTHETIC", "--run", "RUN"],
            "is a data set; MONAI Label looks for images in the folder itself",
        ),
    ],
)
def test_mistakes_on_the_command_line(world, tmp_path, words, message):
    folders = {"STUDIES": world.studies, "RUN": world.run, "SYNTHETIC": world.run / "synthetic"}
    command = [sys.executable, "-m", "unicorn_monai.cli", "label", "--app", str(tmp_path / "app")]
    command += [str(folders.get(word, word)) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- the stock app


def test_the_bundle_serves_and_trains_under_the_stock_app(world, tmp_path):
    """The commands of docs/monai_label.md, in processes that have imported nothing of this package before."""
    content = make_app(tmp_path / "app", world.run)
    bundle, stock, studies = tmp_path / "app" / "model" / "retinal_unet", tmp_path / "monaibundle", tmp_path / "studies"
    shutil.copytree(world.studies, studies, ignore=shutil.ignore_patterns("labels", "synthetic_*", "*.json", "*.lock"))
    download = ["monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *download], check=True, capture_output=True, cwd=tmp_path)
    (stock / "model").mkdir(exist_ok=True)
    (stock / "model" / "retinal_unet").symlink_to(bundle.resolve())
    main = stock / "main.py"
    main.write_text(f"import unicorn_monai.monailabel.stock\n{main.read_text()}")
    masks = bundle_masks(bundle, studies, tmp_path)
    before = sha256(bundle / "models" / "model.pt")
    words = ["monailabel.main", "start_server", "--studies", str(studies), "--host", "127.0.0.1"]
    words += ["--conf", "models", "retinal_unet", "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    with served(stock, *words) as server:
        info = server.call("GET", "/info/").json()
        assert info["models"]["retinal_unet"]["labels"] == {
            name.lower(): value for value, name in enumerate(content["labels"]) if value
        }
        for name, mask in masks.items():
            address = f"/infer/retinal_unet?image={name}&output=image"
            answer = server.call("POST", address, data={"params": '{"device": "cpu"}'})
            if (studies / f"{name}.png").is_file():
                assert np.array_equal(image_in(answer), mask)
                continue
            found, image = nifti_in(answer, tmp_path), nib.load(studies / f"{name}.nii.gz")
            assert np.array_equal(np.asarray(found.dataobj).reshape(mask.shape), mask)
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-6)
        for name in [name for name in sorted(masks) if (studies / f"{name}.nii.gz").is_file()][:3]:
            label = {"label": (f"{name}.nii.gz", world.truth[name].read_bytes())}
            server.call("PUT", f"/datastore/label?image={name}&tag=final", files=label)
        asked = {"device": "cpu", "max_epochs": 1, "val_split": 0.34, "multi_gpu": False}
        server.call("POST", "/train/retinal_unet", json=asked)
        server.finish("/train/")
    assert sha256(bundle / "models" / "model.pt") != before
