"""How fast does each stage train, and does it wait for data? Against the straightforward MONAI loop, in turns.

    python -m benchmarks.training                       both sizes (256 x 256: few iterations)
    python -m benchmarks.training --size 64 --stages diffusion semantic_controlnet
    python -m benchmarks.training --precision bfloat16  both sides in automatic mixed precision
    python -m benchmarks.training --cuda-graphs         on a GPU: the bundles' trainings replay recorded passes

The stages run as their bundles' `train.json` says. The straightforward loop trains a copy of the same network on the
same images (cached in memory by MONAI's `CacheDataset`) with the same losses and optimizer, but encodes every
batch, and where an uncertainty is needed segments every batch; it keeps no moving average. Every few iterations the
trainer is held and the loop has its turn, so both see the same machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader, set_track_meta
from monai.engines import Trainer
from monai.networks.schedulers.scheduler import Scheduler
from monai.transforms import Compose, RandFlipd, RandSpatialCropd
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor, nn
from torch.profiler import profile

from benchmarks.common import PRESETS, kinds_of, now, ratio, recorder, table, where
from data_prep.phantom import Exam, write_phantom
from unicorn_monai.bundle import PRECISIONS, default_device, definition, from_bundle, install, run_bundle
from unicorn_monai.data import datalist
from unicorn_monai.images import LoadPixelsd, collate, one_hot
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.training import autocast_settings
from unicorn_monai.uncertainty import image_uncertainty

STAGES = ("segmentation", "autoencoder", "diffusion", "uncertainty_controlnet", "semantic_controlnet")
NETS = STAGES[3:]
DOMAINS = {size: [("spectralis", preset), ("home_oct", preset)] for size, preset in ((64, "demo"), (256, "full"))}
Batch = dict[str, Tensor]


class Rounds:
    """Ignite handler: the trainer and another loop take turns of some iterations; then a profile of the trainer.

    Args:
        other: builds the other loop's iteration; called at the first turn.
        iterations: of a turn.
        rounds: turns of each; one more before them does not count.
        device: where both run.
    """

    def __init__(
        self, other: Callable[[Engine], Callable[[], None]], iterations: int, rounds: int, device: torch.device
    ) -> None:
        self.build, self.iterations, self.rounds, self.device = other, iterations, rounds, device
        self.own, self.others = list[float](), list[float]()
        self.waiting, self.clock, self.waited, self.kinds = 0.0, 0.0, 0.0, dict[str, float]()
        self.profiled: profile | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, behind its own handlers; not with the evaluator of its validation."""
        if not isinstance(engine, Trainer):
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._got)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def _start(self, engine: Engine) -> None:
        length, least = int(engine.state.epoch_length or 0), needed(self.iterations, self.rounds)
        if length < least:
            raise ValueError(f"An epoch has {length} iterations; expected {least}. Raise --images.")
        self.other, self.done, self.began = self.build(engine), 0, now(self.device)
        self.turned = time.perf_counter()

    def _ask(self, engine: Engine) -> None:
        self.asked = time.perf_counter()

    def _got(self, engine: Engine) -> None:
        self.waiting += time.perf_counter() - self.asked

    def _count(self, engine: Engine) -> None:
        self.done += 1
        if self.done % self.iterations:
            return
        spent, self.clock = now(self.device) - self.began, self.clock + time.perf_counter() - self.turned
        if self.profiled is not None:
            self.profiled.stop()
            self.kinds = kinds_of(self.profiled)
            engine.state.max_epochs = engine.state.epoch
            engine.terminate_epoch()
            return
        if self.done > self.iterations:
            self.own.append(spent / self.iterations)
        else:
            self.waiting = self.clock = 0.0
        turn = now(self.device)
        for _ in range(self.iterations):
            self.other()
        if self.done > self.iterations:
            self.others.append((now(self.device) - turn) / self.iterations)
        if len(self.own) == self.rounds:
            self.waited = self.waiting / self.clock
            self.profiled = recorder()
            self.profiled.start()
        self.began, self.turned = now(self.device), time.perf_counter()


class Loop:
    """What one writes from MONAI's parts: each call is one iteration.

    Args:
        stage: which.
        roots: folders of the bundles, with the weights that the earlier stages left.
        folders: data sets to train on.
        batch_size: images in a batch.
        crop: rows and columns cropped at random, or None.
        engine: the bundle's trainer; its network is copied, its losses are used.
        device: where to run.
        precision: "float32" or "bfloat16".
    """

    def __init__(
        self,
        stage: str,
        roots: dict[str, Path],
        folders: list[Path],
        batch_size: int,
        crop: tuple[int, int] | None,
        engine: Engine,
        device: torch.device,
        precision: str = "float32",
    ) -> None:
        trainer: Any = engine
        self.autocast = autocast_settings(device, precision)
        self.work, self.device, self.loss = getattr(self, f"of_{stage}"), device, trainer.loss_function
        self.network = copy.deepcopy(trainer.network).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        segmentation, ldm = roots["retinal_unet"], roots["latent_diffusion"]
        self.num_labels = definition(segmentation, "num_labels")
        self.batches = batches(folders, stage, batch_size, crop, self.num_labels)
        if stage == "autoencoder":
            self.discriminator = copy.deepcopy(trainer.discriminator).train()
            self.other_optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=1e-4)
        elif stage != "segmentation":
            self.scheduler: Scheduler = from_bundle(ldm, "train_scheduler")
            self.autoencoder = from_bundle(ldm, "autoencoder_def", "autoencoder.pt", device)
            self.scale_factor = trainer.prepare_batch.ldm.scale_factor
        if stage.endswith("controlnet"):
            self.unet = from_bundle(ldm, "network_def", "model.pt", device)
            self.segmentation_network = from_bundle(segmentation, weights="model.pt", device=device)
            self.prior = UncertaintyPrior.load(segmentation / "models" / "prior.json")
        if stage == "semantic_controlnet":
            self.base = from_bundle(roots["uncertainty_controlnet"], weights="model.pt", device=device)

    def __call__(self) -> None:
        """One optimizer step (of the discriminator too)."""
        set_track_meta(True)  # MONAI's default, which the bundles' trainings switch off
        batch = next(self.batches)
        set_track_meta(False)
        batch = {
            key: convert_to_tensor(batch[key], track_meta=False, device=self.device)
            for key in ("image", "label")
            if key in batch
        }
        with torch.autocast(**self.autocast):
            loss = self.work(batch)
        self.optimizer.zero_grad()
        loss.float().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

    def of_segmentation(self, batch: Batch) -> Tensor:
        """Image -> labels."""
        return self.loss(self.network(batch["image"]), batch["label"])

    def of_autoencoder(self, batch: Batch) -> Tensor:
        """Image -> image, against a discriminator, which has its step first."""
        image = batch["image"]
        reconstruction, mean, std = (found.float() for found in self.network(image))
        self.other_optimizer.zero_grad()
        both = torch.cat([image, reconstruction.detach()])
        real, fake = self.discriminator(both)[-1].float().chunk(2)
        self.loss.discriminator(real, fake).backward()
        self.other_optimizer.step()
        scores = self.discriminator.requires_grad_(False)(reconstruction)[-1].float()
        self.discriminator.requires_grad_(True)
        return self.loss(reconstruction, image, mean, std, scores)["loss"]

    def of_diffusion(self, batch: Batch) -> Tensor:
        """Noised latent -> noise."""
        noisy, timesteps, target = self.noised(batch["image"])
        return self.loss(self.network(noisy, timesteps), target)

    def of_uncertainty_controlnet(self, batch: Batch) -> Tensor:
        """Noised latent and uncertainty -> noise, by the frozen U-Net."""
        noisy, timesteps, target = self.noised(batch["image"])
        down, mid = self.network(noisy, timesteps, controlnet_cond=self.hint(batch["image"]))
        extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.loss(self.unet(noisy, timesteps, **extra), target)

    def of_semantic_controlnet(self, batch: Batch) -> Tensor:
        """Noised latent, label map and uncertainty -> noise; the residuals of the frozen ControlNet are added."""
        noisy, timesteps, target = self.noised(batch["image"])
        with torch.no_grad():
            base_down, base_mid = self.base(noisy, timesteps, controlnet_cond=self.hint(batch["image"]))
        label = one_hot(batch["label"], self.num_labels)
        down, mid = self.network(noisy, timesteps, controlnet_cond=label)
        extra = {
            "down_block_additional_residuals": [a + b for a, b in zip(down, base_down, strict=True)],
            "mid_block_additional_residual": mid + base_mid,
        }
        return self.loss(self.unet(noisy, timesteps, **extra), target)

    @torch.no_grad()
    def noised(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the batch: noised latents, their timesteps, what is to be predicted."""
        latents = self.autoencoder.encode_stage_2_inputs(image) * self.scale_factor
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (len(image),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        velocity = self.scheduler.prediction_type == "v_prediction"
        return noisy, timesteps, self.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise

    @torch.no_grad()
    def hint(self, image: Tensor) -> Tensor:
        """Segment the batch: a constant image of each uncertainty."""
        hint = self.prior.hint(image_uncertainty(self.segmentation_network(image)))
        return hint.reshape(-1, 1, 1, 1).expand(-1, 1, *image.shape[2:])


def batches(
    folders: list[Path], stage: str, batch_size: int, crop: tuple[int, int] | None, num_labels: int
) -> Iterator[Batch]:
    """Shuffled batches without end, the files read once and kept in memory."""
    keys = ["image", "label"] if stage in ("segmentation", "semantic_controlnet") else ["image"]
    transforms: list[Any] = [LoadPixelsd(keys, num_labels=num_labels)]
    if crop is not None:
        transforms.append(RandSpatialCropd(keys, crop, random_size=False))
    transforms.append(RandFlipd(keys, prob=0.5, spatial_axis=1))
    data = CacheDataset(datalist(folders, "training", keys), Compose(transforms), progress=False)
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    while True:
        yield from loader


def compare(
    size: int,
    stages: list[str],
    images: int,
    batch_size: int | None,
    iterations: int,
    rounds: int,
    precision: str = "float32",
    cuda_graphs: bool = False,
) -> str:
    """Tables of one size: samples per second of every stage against the loop, and where the trainers' time goes."""
    device, rows, profiles = default_device(), [], []
    with tempfile.TemporaryDirectory() as folder:
        domains = [write_phantom(Path(folder) / d, d, images // 4, 4, size, exam=Exam(p)) for d, p in DOMAINS[size]]
        roots = {name: install(name, folder, PRESETS[size]) for name in ("retinal_unet", "latent_diffusion", *NETS)}
        for stage in STAGES[: 1 + max(STAGES.index(s) for s in stages)]:
            turns = (iterations, rounds) if stage in stages else (1, 1)
            root, config, data, settings = recipe(stage, roots, domains, needed(*turns))
            settings |= {"precision": precision, "cuda_graphs": cuda_graphs}
            if batch_size is not None:
                settings["batch_size"] = batch_size
            batch = settings.get("batch_size") or definition(root, "batch_size", config)
            crop = tuple(definition(root, "patch_size", config)) if stage == "autoencoder" else None
            rounds_of = Rounds(
                lambda e, s=(stage, roots, data, batch, crop): Loop(*s, e, device, precision), *turns, device
            )
            run_bundle(root / "configs" / config, "train", [rounds_of], device=str(device), **settings)
            if stage in stages:
                own, other = statistics.median(rounds_of.own), statistics.median(rounds_of.others)
                faster = ratio(rounds_of.others, rounds_of.own)
                cells = [
                    f"{batch / other:.2f}",
                    f"{batch / own:.2f}",
                    f"{faster:.2f}",
                    f"{100 * rounds_of.waited:.1f} %",
                ]
                rows.append([stage, str(batch), *cells])
                profiles.append(
                    [stage, ", ".join(f"{k} {100 * v:.0f} %" for k, v in rounds_of.kinds.items() if v > 0.01)]
                )
            if stage == "segmentation":
                places = {"dataset_dir": str(domains[0]), "unlabeled_dir": str(domains[1])}
                run_bundle(root / "configs" / "uncertainty.json", "infer", device=str(device), **places)
    header = ["stage", "batch", "loop, samples / s", "here, samples / s", "ratio", "waiting for data"]
    return f"{table(header, rows)}\n\n{table(['stage', 'where the time goes here'], profiles)}"


def needed(iterations: int, rounds: int) -> int:
    """Iterations of a trainer: its turns, one before them and one for the profile."""
    return iterations * (rounds + 2)


def recipe(
    stage: str, roots: dict[str, Path], domains: list[Path], length: int
) -> tuple[Path, str, list[Path], dict[str, Any]]:
    """Bundle, configuration, data sets and settings of a stage of ``length`` iterations.

    A training of just this length warms up at once. At the first learning rates of a long one, weights that start at
    zero stay near 1e-9 for all the turns; gradients through several of them are subnormal numbers, which a processor
    multiplies twenty times as slowly.
    """
    both, long = [str(d) for d in domains], {"iterations_per_epoch": length}
    often = {"max_epochs": 1, "val_interval": 1}
    if stage == "segmentation":
        return roots["retinal_unet"], "train.json", domains[:1], {**often, "dataset_dir": both[0], **long}
    if stage == "autoencoder":
        settings = {**often, **long, "dataset_dir": both, "adversarial_start": 0, "sample_interval": 10**6}
        return roots["latent_diffusion"], "train_autoencoder.json", domains, settings
    settings = {**often, **long, "sample_interval": 10**6}
    if stage == "diffusion":
        return roots["latent_diffusion"], "train_diffusion.json", domains, {**settings, "dataset_dir": both}
    if stage == "uncertainty_controlnet":
        return roots[stage], "train.json", domains, {**settings, "dataset_dir": both[0], "unlabeled_dir": both[1]}
    return roots[stage], "train.json", domains[:1], {**settings, "dataset_dir": both[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--images", type=int, default=240, help="simulated, of each device")
    parser.add_argument("--batch-size", type=int, help="the bundle's by default")
    parser.add_argument("--iterations", type=int, default=5, help="of one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--cuda-graphs", action="store_true", help="here, not in the loop")
    s = parser.parse_args()
    place = where(default_device())  # now: the checkout may move on while this runs
    for size in s.size:
        found = compare(size, s.stages, s.images, s.batch_size, s.iterations, s.rounds, s.precision, s.cuda_graphs)
        print(f"\n{size} x {size}:\n\n{found}")
    graphs = ", CUDA graphs here" if s.cuda_graphs else ""
    print(f"\n{s.precision}{graphs}, turns of {s.iterations} iterations, medians of {s.rounds} rounds; {place}")


if __name__ == "__main__":
    main()
