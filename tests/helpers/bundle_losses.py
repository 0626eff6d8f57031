"""The losses of a bundle's training, in one process or in several: started by torchrun, or called.

What a process computes over its own part of a batch is replaced by what does not depend on the division: instance for
batch normalisation, Dice of each image for that of the batch; and nothing is flipped at random.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import distributed

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.bundle.installation import install

GLOBAL_BATCH, EPOCHS = 4, 3


def prepare(folder: Path) -> Path:
    """A data set of 8 images for training, and the bundle."""
    write_phantom(folder / "data", "spectralis", 6, 4, 32, split=(0.34, 0.33, 0.33))
    inference = TINY["retinal_unet"]["inference.json"] | {"network_def::norm": "instance"}
    train = {"loss": {"_target_": "DiceLoss", "softmax": True, "to_onehot_y": True}, "max_epochs": EPOCHS}
    train["iterations_per_epoch"] = None  # one pass
    train |= {"val_interval": EPOCHS, "train::preprocessing::transforms::1::prob": 0.0, "learning_rate": 0.01}
    install("retinal_unet", folder, None, {"inference.json": inference, "train.json": train})
    return folder


def losses(folder: Path) -> list[float]:
    """Of every iteration, the mean over the processes; every process says the same."""
    processes = int(os.environ["WORLD_SIZE"])
    configs, output = folder / "retinal_unet" / "configs", folder / str(processes)
    workflow = ConfigWorkflow(
        config_file=[str(configs / "train.json"), str(configs / "multi_gpu_train.json")],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,  # type: ignore[arg-type]
        workflow_type="train",
        dataset_dir=str(folder / "data"),
        ckpt_dir=str(output),
        output_dir=str(output),
        batch_size=GLOBAL_BATCH // processes,
        device="cpu",
    )
    found: list[float] = []

    def note(engine: Engine) -> None:
        loss = torch.tensor(float(engine.state.output[0]["loss"]))  # type: ignore[index]
        distributed.all_reduce(loss)
        found.append(loss.item() / processes)

    workflow.initialize()
    workflow.parser.get_parsed_content("train::trainer").add_event_handler(Events.ITERATION_COMPLETED, note)
    workflow.run()
    workflow.finalize()
    return found


if __name__ == "__main__":
    here = Path(sys.argv[1])
    (here / f"losses-{os.environ['WORLD_SIZE']}-{os.environ['RANK']}.json").write_text(json.dumps(losses(here)))
