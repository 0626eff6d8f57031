"""One denoising step with both ControlNets by hand, Eqs. (5) to (7), and what `DualControlNetInferer` makes of it.

python examples/fused_step.py
"""

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler

from unicorn_monai import DualControlNetInferer, LatentDiffusion, controlnet_for

LABELS, W = 4, 0.3


@torch.no_grad()
def main() -> float:
    """The largest difference between both."""
    torch.manual_seed(0)
    unet = DiffusionModelUNet(2, 3, 3, (1, 1), (16, 16), (False, False), norm_num_groups=8)
    semantic, uncertainty = (controlnet_for(unet, channels, (8, 8, 16)) for channels in (LABELS, 1))
    autoencoder = AutoencoderKL(2, 1, 1, (1, 1, 1), (8, 8, 8), (False,) * 3, 3, norm_num_groups=8)
    for weight in [*semantic.parameters(), *uncertainty.parameters(), *unet.out.parameters()]:
        torch.nn.init.normal_(weight, std=0.1)  # as if trained: they start at zero
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([500])
    label_map, hint = torch.rand(2, LABELS, 32, 32).round(), torch.full((2, 1, 32, 32), 0.7)

    down_sem, mid_sem = semantic(x, t, controlnet_cond=label_map)
    down_unc, mid_unc = uncertainty(x, t, controlnet_cond=hint)
    down = [(1 - W) * s + W * u for s, u in zip(down_sem, down_unc, strict=True)]  # Eq. (6)
    mid = (1 - W) * mid_sem + W * mid_unc  # Eq. (7)
    eps = unet(x, t, down_block_additional_residuals=down, mid_block_additional_residual=mid)

    ldm = LatentDiffusion(autoencoder, unet, DDPMScheduler(clip_sample=False), DDPMScheduler(), 1.0, (3, 8, 8))
    fused = DualControlNetInferer(ldm, semantic, uncertainty, W, mode="paper")(x, t, label_map, hint)
    print(f"largest difference {(eps - fused).abs().max():.1e}")
    return float((eps - fused).abs().max())


if __name__ == "__main__":
    main()
