"""The denoising loop of UnIACorN: one U-Net, two ControlNets, fused at every step (Eqs. 5 to 7).

    for t in timesteps:
        r    = a_sem * semantic(x_t, t, label map) + a_unc * uncertainty(x_t, t, hint)
        eps  = unet(x_t, t, r)            guided: eps_0 + g_unc (eps_u - eps_0) + g_sem (eps - eps_u)
        x_t' = scheduler.step(eps, t, x_t)
    image = autoencoder.decode(x_0 / scale_factor)

Label map and hint stay at image resolution; the ControlNets' own strided embeddings bring them to the latent's, so
layers of two pixels survive. Every image has its own seed, drawn on the CPU: it is the same in any batch.

Guidance extrapolates what each control adds, as classifier-free guidance does (Ho and Salimans 2022): eps_0 is that of
the U-Net alone, eps_u that with the Uncertainty-ControlNet. Where each control learnt on top of what comes before it
(``compositional``) nothing need be dropped in training; where all learn at once (``joint``) both are. With prompts
(`text`) there is a term more, (g_text - 1) (eps - eps of the empty prompt): classifier-free guidance itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from unicorn_monai.controlnets import encoded_condition
from unicorn_monai.fusion import Control, Weight, control, guided, mode_weights
from unicorn_monai.latent_diffusion import LatentDiffusion
from unicorn_monai.schedulers import prepare_timesteps, seeded_step
from unicorn_monai.system.cuda_graphs import CudaGraphs
from unicorn_monai.system.networks import compiled, require


class DualControlNetInferer:
    """Noise prediction and sampling with a Semantic- and an Uncertainty-ControlNet.

    Args:
        ldm: what both control.
        semantic: ControlNet of the label map, or None.
        uncertainty: ControlNet of the hint, or None.
        uncertainty_weight: w; a number, or a tensor (batch,) with one per image.
        mode: "paper": weights (1 - w, w); "compositional": (1, w); "joint": (1, 1), and w times g_unc;
            with the number 0 the label map alone.
        guidance: (g_unc, g_sem), or (g_unc, g_sem, g_text) for a model with words. (1, 1) costs one pass of the U-Net;
            a g_unc other than 1, and a g_sem other than g_unc, one more of its decoder each, a g_text other than 1 one
            more of all networks.
        compile: compile the three networks (``system.networks.compiled``); pays for thousands of images.
        cuda_graphs: record a step on the GPU and replay it (:class:`CudaGraphs`), for many batches of one size.
    """

    def __init__(
        self,
        ldm: LatentDiffusion,
        semantic: nn.Module | None = None,
        uncertainty: nn.Module | None = None,
        uncertainty_weight: Weight = 0.5,
        mode: str = "paper",
        guidance: Sequence[float] = (1.0, 1.0),
        compile: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        mode_weights(mode, uncertainty_weight)  # refuses an unknown mode
        self.guidance = tuple(guidance)  # of the uncertainty, of the label map and, with words, of the text
        require(len(self.guidance) in (2, 3), f"guidance is {self.guidance}; expected (g_unc, g_sem) or with a g_text.")
        g_text = self.guidance[2] if len(self.guidance) > 2 else 1.0
        self.null_context: Tensor | None = None
        if g_text != 1:
            if ldm.text is None:
                raise ValueError(f"g_text is {g_text}, but the latent diffusion model has no words to leave out.")
            self.null_context = ldm.text.null.to(ldm.device)
        if compile:
            ldm = replace(ldm, unet=compiled(ldm.unet))
            semantic, uncertainty = (n if n is None else compiled(n) for n in (semantic, uncertainty))
        self.ldm, self.semantic, self.uncertainty = ldm, semantic, uncertainty
        self.uncertainty_weight, self.mode, self.compile = uncertainty_weight, mode, compile
        self.predict = CudaGraphs(self) if cuda_graphs else self

    def __call__(
        self,
        latents: Tensor,
        timesteps: Tensor,
        label_map: Tensor,
        hint: Tensor,
        context: Tensor | None = None,
        uncertainty_weight: Weight | None = None,
    ) -> Tensor:
        """One noise prediction for x_t, (batch, channels, *latent), at timesteps (batch,) or (1,).

        The rest is as of :meth:`sample_latents`; the hint is an image. A ControlNet of weight 0 is not run.
        """
        weight = self.uncertainty_weight if uncertainty_weight is None else uncertainty_weight
        a_sem, a_unc = mode_weights(self.mode, weight)

        def controls(context: Tensor | None) -> tuple[list[Control], list[Control]]:
            label = control(self.semantic, a_sem, label_map, latents, timesteps, context)
            return label, control(self.uncertainty, a_unc, hint, latents, timesteps, context)

        label, style = controls(context)
        g_unc, g_sem, g_text = (*self.guidance, 1.0)[:3]
        g_unc = g_unc * weight if self.mode == "joint" else g_unc
        g_sem = g_sem if label else g_unc  # without a label map eps is eps_u, and nothing is there to push
        # eps_0 + g_unc (eps_u - eps_0) + g_sem (eps - eps_u) + (g_text - 1) eps, by prediction: eps_0, eps_u, eps
        nested = ((1 - g_unc, []), (g_unc - g_sem, style), (g_sem + g_text - 1, label + style))
        noise = guided(self.ldm.unet, nested, latents, timesteps, context)
        if self.null_context is not None:  # - (g_text - 1) eps of the empty prompt
            null = self.null_context.to(latents).expand(len(latents), -1, -1)
            noise = noise + guided(self.ldm.unet, [(1 - g_text, [*chain(*controls(null))])], latents, timesteps, null)
        return noise

    def sample(
        self,
        label_map: Tensor,
        hint: Tensor,
        seeds: Sequence[int],
        num_inference_steps: int = 50,
        uncertainty_weight: Weight | Sequence[Weight] | None = None,
        context: Tensor | None = None,
        start: tuple[Tensor, int] | None = None,
    ) -> Tensor:
        """Draw one image for each label map and hint: (batch, channels, *image), not clamped to [0, 1].

        See :meth:`sample_latents`, which has the arguments and what is refused.
        """
        drawn = self.sample_latents(label_map, hint, seeds, num_inference_steps, uncertainty_weight, context, start)
        with torch.no_grad():
            return self.ldm.decode(drawn)

    @torch.no_grad()
    def sample_latents(
        self,
        label_map: Tensor,
        hint: Tensor,
        seeds: Sequence[int],
        num_inference_steps: int = 50,
        uncertainty_weight: Weight | Sequence[Weight] | None = None,
        context: Tensor | None = None,
        start: tuple[Tensor, int] | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw scaled latents, (batch, channels, *latent), for ``LatentDiffusion.decode``.

        Args:
            label_map: one-hot, (batch, labels, *image); its device is where everything runs.
            hint: scaled uncertainty of each image, (batch,), or (batch, 1, *image).
            seeds: one for each image.
            num_inference_steps: denoising steps.
            uncertainty_weight: a number, one per image as a tensor (batch,), or a list with one of these per step.
            context: of the prompts, (batch, tokens, dimensions).
            start: (scaled latents of real images, e.g. of ``LatentDiffusion.encode``, steps to skip) instead of noise.
            on_step: told the number of every step and the x_0 predicted there, as scaled latents.

        Raises:
            ValueError: numbers of label maps, hints and seeds, of weights and steps, or shapes that do not fit.
        """
        n, shape, device, dims = len(label_map), self.ldm.latent_shape, label_map.device, label_map.ndim - 2
        scheduler = copy.deepcopy(self.ldm.scheduler)  # it holds the state of one sampling
        steps = prepare_timesteps(scheduler, num_inference_steps)
        given = self.uncertainty_weight if uncertainty_weight is None else uncertainty_weight
        each = given if isinstance(given, Sequence) else [given] * len(steps)
        weights = [w.to(device) if isinstance(w, Tensor) else w for w in each]
        real, skip = start or (torch.zeros(n, *shape), 0)
        counted = f"{n} label maps, {len(hint)} hints, {len(seeds)} seeds"
        require(n == len(hint) == len(seeds), f"Got {counted}; expected as many.")
        require(len(shape) == dims + 1, f"latent_shape is {shape}; expected (channels, *latent) of {dims} dimensions.")
        told = f"Got a list of {len(weights)} weights for {len(steps)} steps"
        require(len(weights) == len(steps), f"{told}; expected one per step. Weights per image are a tensor (batch,).")
        require(0 <= skip < len(steps), f"start skips {skip} of {len(steps)} steps; expected 0 to {len(steps) - 1}.")
        require(real.shape == (n, *shape), f"start has latents {tuple(real.shape)}; expected {(n, *shape)}.")

        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        if start is not None:
            latents = scheduler.add_noise(real.cpu().float(), latents, torch.tensor([steps[skip]]))
        latents, label_map, hint = latents.to(device), label_map.float(), hint.float().to(device)
        if hint.ndim == 1:
            hint = hint.reshape(-1, *[1] * (label_map.ndim - 1)).expand(-1, 1, *label_map.shape[2:])
        with (  # the conditions are the same at every step: embed them once
            encoded_condition(self.semantic, label_map, "label_map", shape[1:]) as label_map,
            encoded_condition(self.uncertainty, hint, "hint", shape[1:]) as hint,
        ):
            for i, t in enumerate(steps[skip:], start=skip):
                at = torch.tensor([t], device=device)
                noise = self.predict(latents, at, label_map, hint, context, weights[i])
                latents, x0 = seeded_step(scheduler, noise, t, latents, generators)
                if on_step is not None:
                    on_step(i, latents if x0 is None else x0)
        return latents
