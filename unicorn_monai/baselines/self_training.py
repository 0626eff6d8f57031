"""Self-training: a network's own confident predictions on unlabelled images become their labels (Lee 2013).

Round 1 asks the network trained on the labelled domain; every further round the network of the round before. The true
labels of the unlabelled domain, where there are any, are not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.system.files import PathLike

ROUNDS = 2  # of the experiment
Step = tuple[str, str, dict[str, Any]]


def steps(
    weights: PathLike,
    labeled_dir: PathLike,
    unlabeled_dir: PathLike,
    output_dir: PathLike,
    rounds: int = 2,
    threshold: float = 0.9,
    augmentation: str = "none",
) -> list[Step]:
    """What self-training runs, in order: (configuration of retinal_unet, "infer" or "train", settings).

    ``weights`` are those of the network trained on the labelled domain, ``rounds`` how often labels are guessed, from a
    probability ``threshold`` on, and the network is trained. The last round leaves
    ``output_dir/round_ROUNDS/model.pt``.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected at least 1, 2 is usual.")
    result: list[Step] = []
    labeled, teacher = str(labeled_dir), str(weights)
    for i in range(1, rounds + 1):
        folder = Path(output_dir) / f"round_{i}"
        guessed = str(folder / "pseudo_labelled")
        labelling = {"dataset_dir": str(unlabeled_dir), "output_dir": guessed, "ckpt_path": teacher}
        result.append(("pseudo_label.json", "infer", labelling | {"labeled_dir": labeled, "threshold": threshold}))
        data = {"dataset_dir": [labeled, guessed], "validation_dir": [labeled, guessed], "resume": True}
        folders = {"ckpt_dir": str(folder), "output_dir": str(folder), "augmentation": augmentation}
        result.append(("train.json", "train", data | folders))
        teacher = str(folder / "model.pt")
    return result


def self_train(
    bundle_root: PathLike,
    weights: PathLike,
    labeled_dir: PathLike,
    unlabeled_dir: PathLike,
    output_dir: PathLike,
    rounds: int = 2,
    threshold: float = 0.9,
    **settings: Any,
) -> Path:
    """Run :func:`steps` with a retinal_unet bundle, with further ``settings`` of its ``train.json``, e.g. ``seed=1``.

    An interrupted call goes on where it stopped. Given are the weights of the last round.
    """
    for config, kind, overrides in steps(weights, labeled_dir, unlabeled_dir, output_dir, rounds, threshold):
        run_bundle(Path(bundle_root) / "configs" / config, kind, **(overrides | (settings if kind == "train" else {})))
    return Path(output_dir) / f"round_{rounds}" / "model.pt"
