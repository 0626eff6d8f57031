"""The uncertainty of one image, Eqs. (3) and (4): where a segmentation network is unsure, and how unsure on the whole.

python examples/uncertainty.py runs/demo/bundles/retinal_unet B_SCAN.png entropy.png
"""

import sys

import torch

from unicorn_monai import from_bundle, image_uncertainty, normalised_entropy, read_array, write_array


@torch.no_grad()
def main(bundle: str, image: str, output: str) -> float:
    """Write the entropy of every pixel as a picture, and tell their mean."""
    network = from_bundle(bundle, "network_def", "model.pt", "cpu")
    pixels = torch.from_numpy(read_array(image)).float()[None, None] / 255
    logits = network(pixels)
    entropy = normalised_entropy(logits)[0]  # of the softmax, over log(number of labels): 0 to 1
    write_array(output, (255 * entropy).round().to(torch.uint8).numpy().squeeze())
    u = image_uncertainty(logits).item()
    print(f"u = {u:.3f}")
    return u


if __name__ == "__main__":
    main(*sys.argv[1:])
