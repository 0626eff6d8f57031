"""How long does the whole evaluation of a synthetic data set take? Timed per part; nothing is judged here.

    OMP_NUM_THREADS=2 python -m benchmarks.evaluation --count 1000 --size 256

Simulates the real images of the home device, ``count`` to train on and ``count`` held out, and "synthetic" ones: the
training images with new speckle, as an honest generator would make them from the training label maps (and the same from
held-out label maps as control). Neither this nor the training of the feature network is part of the evaluation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from scipy import linalg, ndimage

from data_prep.phantom import write_phantom
from unicorn_monai.bundle import from_bundle, install
from unicorn_monai.data import About, DatasetWriter, datalist, label_names
from unicorn_monai.evaluation import (
    Audited,
    Features,
    FeatureSet,
    Material,
    audit,
    count,
    distances,
    fid,
    gather,
    score_images,
    summarise,
    train_encoder,
)
from unicorn_monai.images import read_array, read_image
from unicorn_monai.segmentation import Measure
from unicorn_monai.system import save_weights


def with_new_speckle(real: Path, split: str, output: Path, seed: int) -> Path:
    """A data set with the label maps of another: every layer's local mean times speckle that is drawn anew."""
    random = np.random.default_rng(seed)
    labels = dict(enumerate(label_names(real)))
    with DatasetWriter(output, About(name="synthetic", device="home_oct", labels=labels), synthetic=True) as writer:
        for item in datalist(real, split, ("image", "label")):
            image, label = read_array(item["image"]) / 255, read_array(item["label"])
            smooth = np.zeros(image.shape)
            for value in np.unique(label):
                inside = (label == value).astype(float)
                weight = ndimage.uniform_filter(inside, 15)
                smooth += inside * ndimage.uniform_filter(image * inside, 15) / np.maximum(weight, 1e-6)
            spread = np.abs(image - smooth).mean() * 1.25
            grain = ndimage.gaussian_filter(random.standard_normal(image.shape), 0.6)
            made = np.clip(smooth + spread * grain / grain.std(), 0, 1)
            origin = {"seed": len(writer), "source_label": Path(item["label"]).name}
            writer.add("training", (255 * made).astype(np.uint8), label, subject=item["subject"], synthetic=origin)
    return output


@contextmanager
def timed(name: str, seconds: dict[str, float], processor: dict[str, float] | None = None) -> Iterator[None]:
    """Note the time of a block on the clock and, over all threads, of the processor (on a busy machine they differ)."""
    started, used = time.monotonic(), time.process_time()
    yield
    seconds[name], spent = time.monotonic() - started, time.process_time() - used
    if processor is not None:
        processor[name] = spent
    print(f"{name:45s} {seconds[name]:8.1f} s, {spent:8.1f} s of processor time", flush=True)


def frechet_distances(count: int, width: int) -> None:
    """FID of two sets of features (Inception gives 2,048), here and by the matrix square root of its definition."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((count, width)), 1.1 * random.standard_normal((count, width)) + 0.1
    seconds: dict[str, float] = {}
    with timed(f"(FID, {count} x {width}, as here)", seconds):
        ours = fid(torch.from_numpy(a), torch.from_numpy(b))
    with timed(f"(FID, {count} x {width}, scipy.linalg.sqrtm)", seconds):
        covariances = np.cov(a.T), np.cov(b.T)
        root = linalg.sqrtm(covariances[0] @ covariances[1]).real
        theirs = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    print(f"(FID {ours:.6f} and {theirs:.6f})")


def simulated(root: Path, count: int, held_out: int, size: int) -> dict[str, tuple[Path, str]]:
    """The sets of images that are compared: name -> data set and split."""
    scans = 10
    subjects, others = -(-count // scans), -(-held_out // scans)
    shares = (subjects, 0, others)
    real = write_phantom(root / "real", "home_oct", subjects + others, scans, size, split=shares)
    home = write_phantom(root / "clean", "spectralis", 2 * others, scans, size, split=(1, 0, 1))
    synthetic = with_new_speckle(real, "training", root / "synthetic", 1)
    control = with_new_speckle(real, "test", root / "control", 2)
    return {
        "unlabeled": (real, "training"),
        "held_out": (real, "test"),
        "labeled": (home, "training"),
        "synthetic": (synthetic, "training"),
        "control": (control, "training"),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Simulate, evaluate, print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="synthetic images, and as many real ones to train on")
    parser.add_argument("--held-out", type=int, help="held-out real images, and as many of the control set (count / 4)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100, help="training steps of the feature network")
    parser.add_argument("--preset", help="segmentation network: the bundle's own, or 'small'")
    parser.add_argument("--width", type=int, default=2048, help="of features whose FID is computed in two ways")
    settings = parser.parse_args(words)
    held_out = settings.held_out or max(40, settings.count // 4)
    cpu, seconds, processor, prepared = torch.device("cpu"), {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with timed("(preparation: simulation)", prepared):
            sources = simulated(root, settings.count, held_out, settings.size)
            real, home, synthetic = (sources[name][0] for name in ("unlabeled", "labeled", "synthetic"))
        with timed("(preparation: feature network)", prepared):
            train_encoder([home, real], root / "encoder" / "model.pt", iterations=settings.steps)
        bundle = install("retinal_unet", root, settings.preset)
        save_weights(from_bundle(bundle), root / "model.pt")

        with timed("segmentation scores of the held-out images", seconds, processor):
            score_images(bundle, root / "model.pt", real, "test", 0, cpu)
        with timed("label fidelity and uncertainty, synthetic", seconds, processor):
            network = from_bundle(bundle, weights=str(root / "model.pt"))
            items = datalist(synthetic, "training", ("image", "label"))
            paths = [str(item["image"]) for item in items]
            measure, maps, uncertainties = Measure(), [], []
            with torch.no_grad():
                for start in range(0, len(paths), 16):
                    logits = network(torch.stack([read_image(path) for path in paths[start : start + 16]]))
                    maps.append(logits.argmax(dim=1).to(torch.uint8))
                    uncertainties.append(measure(logits))
            summarise(count(items, torch.cat(maps), 10), 0)
        features = Features.from_encoder(root / "encoder" / "model.pt")
        material: dict[str, Material] = {}
        with timed("reading and features of all sets", seconds, processor):
            for name, (folder_of, split) in sources.items():
                material[name] = gather(datalist(folder_of, split, ("image", "label")), features, 10)
        with timed("FID and KID of every pair", seconds, processor):
            sets = {n: FeatureSet(m.features, [str(i["subject"]) for i in m.items]) for n, m in material.items()}
            table = distances(sets, features.name, ["unlabeled", "held_out", "labeled"])
        with timed("memorization audit with planted copies", seconds, processor):
            audited = Audited(*(material[name] for name in ("synthetic", "unlabeled", "held_out", "control")))
            found = audit(audited, features, root / "audit")
    shares = {name: part["residual"]["99"]["share"] for name, part in (found["sets"] | found["planted"]).items()}
    sizes = {name: len(m.items) for name, m in material.items()}
    print(f"images: {sizes}, {settings.size} x {settings.size}; {torch.get_num_threads()} threads; FID n {table['n']}")
    print(f"mean uncertainty of the synthetic images: {torch.cat(uncertainties).mean():.3f} (untrained network)")
    print(f"share above the 99th percentile by speckle: {json.dumps(shares)}")
    print(f"whole evaluation: {sum(seconds.values()):.0f} s, {sum(processor.values()):.0f} s of processor time")
    frechet_distances(settings.count, settings.width)


if __name__ == "__main__":
    main()
