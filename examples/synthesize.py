"""Images of a finished run: one label map at rising uncertainties, side by side in a PNG file.

python examples/synthesize.py runs/demo rising.png
"""

import sys

import numpy as np
import torch

from unicorn_monai import UnIACorN, datalist, read_array, write_array


def main(run: str, output: str, device: str = "cpu") -> None:
    """Write the picture."""
    model = UnIACorN.from_run(run, device)
    item = datalist(f"{run}/synthetic", "training", ("image", "label"))[0]
    label_map = torch.from_numpy(read_array(item["label"]).astype(np.int64))
    prior = model.generator.prior  # of the unlabelled images
    uncertainties = [prior.mean * share for share in (0.25, 0.5, 0.75, 1.0)]
    # The same noise for all: what differs is what was asked for.
    images = model(label_map.expand(4, -1, -1), uncertainty=uncertainties, seeds=[0] * 4)
    row = torch.cat([*images], dim=2).movedim(0, -1).squeeze(-1)
    write_array(output, (255 * row).round().to(torch.uint8).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
