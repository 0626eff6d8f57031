"""The denoising loop of UnIACorN: one U-Net, two ControlNets, fused at every step (Eqs. 5 to 7).

    for t in timesteps:
        r    = a_sem * semantic(x_t, t, label map) + a_unc * uncertainty(x_t, t, hint)
        eps  = unet(x_t, t, r)            guided: eps_0 + g_unc (eps_u - eps_0) + g_sem (eps - eps_u)
        x_t' = scheduler.step(eps, t, x_t)
    image = autoencoder.decode(x_0 / scale_factor)

Label map and hint stay at image resolution; the ControlNets' own strided embeddings bring them to the latent's, so
layers of two pixels survive. Every image has its own seed, drawn on the CPU: it is the same in any batch.

Guidance extrapolates what each control adds, as classifier-free guidance does (Ho and Salimans 2022): eps_0 is that of
the U-Net alone, eps_u that with the Uncertainty-ControlNet. Nothing need be dropped in training: each is the prediction
of a model that was trained without what comes after it (``compositional``). With prompts (`text`) there is a term
more, (g_text - 1) (eps - eps of the empty prompt): classifier-free guidance itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from unicorn_monai.controlnets import encoded_condition
from unicorn_monai.fusion import Control, Weight, at_every_step, control, guided, mode_weights
from unicorn_monai.schedulers import Sampler, prepare_timesteps, seeded_step
from unicorn_monai.system.cuda_graphs import CudaGraphs
from unicorn_monai.system.networks import in_parts, require


class DualControlNetInferer:
    """Noise prediction and sampling with a Semantic- and an Uncertainty-ControlNet.

    Args:
        scheduler: a MONAI scheduler (``set_timesteps``, ``timesteps``, ``add_noise``, ``step``).
        scale_factor: what the latents were multiplied by in training (1 / their standard deviation).
        uncertainty_weight: w; a number, or a tensor (batch,) with one per image.
        mode: "paper": weights (1 - w, w); "compositional": (1, w).
        guidance: (g_unc, g_sem) or (g_unc, g_sem, g_text); each that differs from the one before it, (1, g_unc), costs
            a pass of the decoder, a g_text that is not 1 one of all networks.
        null_context: encoding of the empty prompt, (1, tokens, dimensions); needed for g_text.
        cuda_graphs: record a step on the GPU and replay it (:class:`CudaGraphs`), for many batches of one size.
    """

    def __init__(
        self, scheduler: Sampler, scale_factor: float = 1.0, uncertainty_weight: Weight = 0.5, mode: str = "paper",
        guidance: Sequence[float] = (1.0, 1.0), null_context: Tensor | None = None, cuda_graphs: bool = False,
    ) -> None:  # fmt: skip
        require(scale_factor > 0, f"scale_factor is {scale_factor}; expected 1 / std of the latents, above 0.")
        mode_weights(mode, uncertainty_weight)  # refuses an unknown mode
        *_, g_text = self.guidance = (*guidance, 1.0)[:3]
        require(g_text == 1 or null_context is not None, f"g_text is {g_text}, but there is no null_context to leave.")
        self.scheduler, self.scale_factor = scheduler, float(scale_factor)
        self.uncertainty_weight, self.mode, self.null_context = uncertainty_weight, mode, null_context
        self.predict = CudaGraphs(self) if cuda_graphs else self

    def __call__(
        self, inputs: Tensor, unet: nn.Module, semantic: nn.Module | None, uncertainty: nn.Module | None,
        timesteps: Tensor, label_map: Tensor, hint: Tensor, context: Tensor | None = None,
        uncertainty_weight: Weight | None = None,
    ) -> Tensor:  # fmt: skip
        """One noise prediction for noisy latents ``inputs``; a net that is None or of weight 0 is not run.

        The rest is as in ``sample``, but ``timesteps`` is (batch,) or (1,) and ``hint`` is (batch, 1, *image).
        """
        weight = self.uncertainty_weight if uncertainty_weight is None else uncertainty_weight
        a_sem, a_unc = mode_weights(self.mode, weight)

        def controls(context: Tensor | None) -> tuple[list[Control], list[Control]]:
            label = control(semantic, a_sem, label_map, inputs, timesteps, context)
            return label, control(uncertainty, a_unc, hint, inputs, timesteps, context)

        label, style = controls(context)
        g_unc, g_sem, g_text = self.guidance
        g_sem = g_sem if label else g_unc
        nested = ((1 - g_unc, []), (g_unc - g_sem, style), (g_sem + g_text - 1, label + style))
        noise = guided(unet, nested, inputs, timesteps, context)
        if g_text != 1 and self.null_context is not None:
            null = self.null_context.to(inputs).expand(len(inputs), -1, -1)
            noise = noise + guided(unet, [(1 - g_text, [*chain(*controls(null))])], inputs, timesteps, null)
        return noise

    @torch.no_grad()
    def sample(
        self, label_map: Tensor, hint: Tensor, autoencoder: AutoencoderKL, unet: nn.Module,
        semantic: nn.Module | None, uncertainty: nn.Module | None, latent_shape: Sequence[int], seeds: Sequence[int],
        num_inference_steps: int = 50, uncertainty_weight: Weight | Sequence[Weight] | None = None,
        context: Tensor | None = None, start: tuple[Tensor, int] | None = None,
        intermediate_steps: int | None = None, decode_batch_size: int = 16, verbose: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Draw one image for each label map and hint: (batch, channels, *image), and the intermediates if asked for.

        Args:
            label_map: one-hot, (batch, labels, *image); its device is where everything runs.
            hint: scaled uncertainty of each image, (batch,), or (batch, 1, *image).
            autoencoder: decodes the latents.
            unet: the noise predictor.
            semantic: ControlNet of the label map, or None.
            uncertainty: ControlNet of the hint, or None.
            latent_shape: (channels, *latent).
            seeds: one for each image.
            num_inference_steps: denoising steps.
            uncertainty_weight: a number, one per image as a tensor (batch,), or a list with one of these per step.
            context: cross-attention context (prompts), (batch, tokens, dimensions).
            start: (latents of real images as the autoencoder encodes them, number of steps to skip) instead of noise.
            intermediate_steps: also return a list of the decoded predictions of x0 at every so many steps.
            decode_batch_size: images decoded at a time.
            verbose: show a progress bar.
        """
        n, shape, device, dims = len(label_map), tuple(latent_shape), label_map.device, label_map.ndim - 2
        steps = prepare_timesteps(self.scheduler, num_inference_steps)
        given = self.uncertainty_weight if uncertainty_weight is None else uncertainty_weight
        weights = at_every_step(given, len(steps), device)
        real, skip = start or (torch.zeros(n, *shape), 0)
        require(n == len(hint) == len(seeds), f"Got {n} label maps, {len(hint)} hints, {len(seeds)} seeds; match.")
        require(len(shape) == dims + 1, f"latent_shape is {shape}; expected (channels, *latent) of {dims} dimensions.")
        channels = getattr(unet, "in_channels", shape[0])
        require(shape[0] == channels, f"latent_shape is {shape}; expected the {channels} channels of the U-Net.")
        require(len(weights) == len(steps), f"Got {len(weights)} weights for {len(steps)} steps; give one per step.")
        require(0 <= skip < len(steps), f"start skips {skip} of {len(steps)} steps; expected 0 to {len(steps) - 1}.")
        require(real.shape == (n, *shape), f"start has latents {tuple(real.shape)}; expected {(n, *shape)}.")

        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        if start is not None:
            real = real.cpu().float() * self.scale_factor
            latents = self.scheduler.add_noise(real, latents, torch.tensor([steps[skip]]))
        latents, label_map, hint, intermediates = latents.to(device), label_map.float(), hint.float().to(device), []
        if hint.ndim == 1:
            hint = hint.reshape(-1, *[1] * (label_map.ndim - 1)).expand(-1, 1, *label_map.shape[2:])
        with (  # the conditions are the same at every step: embed them once
            encoded_condition(semantic, label_map, "label_map", shape[1:]) as label_map,
            encoded_condition(uncertainty, hint, "hint", shape[1:]) as hint,
        ):
            for i, t in enumerate(tqdm(steps[skip:], desc="denoising", disable=not verbose), start=skip):
                at = torch.tensor([t], device=device)
                noise = self.predict(latents, unet, semantic, uncertainty, at, label_map, hint, context, weights[i])
                latents, x0 = seeded_step(self.scheduler, noise, t, latents, generators)
                if intermediate_steps and i % intermediate_steps == 0:
                    intermediates.append(self.decode(latents if x0 is None else x0, autoencoder, decode_batch_size))
        images = self.decode(latents, autoencoder, decode_batch_size)
        return (images, intermediates) if intermediate_steps else images

    def decode(self, latents: Tensor, autoencoder: AutoencoderKL, batch_size: int = 16) -> Tensor:
        """Scaled latents -> images, a few at a time; fewer where memory runs out."""
        return in_parts(lambda z: autoencoder.decode_stage_2_outputs(z / self.scale_factor), latents, batch_size)
