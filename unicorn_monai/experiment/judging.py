"""What the stages measure: the networks, the generator and the folders of a run, handed to the evaluation.

The autoencoder's speckle and the latents' spread. The control of the uncertainty: for a grid of requested uncertainties
the same label maps are synthesised and the uncertainty of the images is measured with the segmentation network the
prior belongs to. Label fidelity: the mean IoU between the label maps asked for and what an oracle (the network trained
on the unlabelled domain's real labels where there are any) sees in the synthetic images. Look and mesh of the images:
``quality/``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.bundle.sampling_steps import describe
from unicorn_monai.data import datalist, read_header
from unicorn_monai.data.layout import SPLITS, label_map_counts
from unicorn_monai.data.uncertainties import read_uncertainties
from unicorn_monai.diffusion import LatentDataset, load_prior
from unicorn_monai.evaluation import (
    Features,
    FeatureSet,
    Scorer,
    comparison,
    copies,
    distances,
    fusion_weight,
    summarise,
)
from unicorn_monai.evaluation.expected_iou import CALIBRATED, fit_lines, fit_temperatures
from unicorn_monai.evaluation.features import train_encoder
from unicorn_monai.evaluation.recommendation import JURY, REVERSE, SYNTHETIC, judge, recommend, score_on
from unicorn_monai.evaluation.scoring import scored_items, scores, true_labels
from unicorn_monai.experiment import pictures
from unicorn_monai.experiment.reconstructions import IMAGES, kept, lost
from unicorn_monai.experiment.run import Run
from unicorn_monai.experiment.runner import Runner
from unicorn_monai.images import LoadPixelsd, read_image
from unicorn_monai.images.known_shifts import disturbances
from unicorn_monai.images.pictures import evenly, palette
from unicorn_monai.images.speckle import high_pass_std
from unicorn_monai.latent_diffusion import downsampling
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.quality.look import FEWEST_VALIDATED, Look
from unicorn_monai.quality.mesh import spectra, strongest_line
from unicorn_monai.report.checks import TOLD_APART, image_checks
from unicorn_monai.report.results import Results
from unicorn_monai.report.trainings import GUESSED_ON
from unicorn_monai.segmentation import predict_labels
from unicorn_monai.segmentation.predict import image_batches
from unicorn_monai.synthesis import Generator, Request, Requests
from unicorn_monai.synthesis.requests import with_uncertainty
from unicorn_monai.system.files import or_none, read_json, write_json
from unicorn_monai.uncertainty import image_uncertainty

logger = logging.getLogger("unicorn_monai")

LATENTS = 64  # sampled for their spread
GRID = 8  # requested uncertainties
MAPS = 12  # label maps at each of them
WEIGHT_MAPS = 32  # label maps at each fusion weight
DRAWN = 0.5  # images in the look of the unlabelled device
CONTROL = 128  # images from label maps that no network was trained on
BATCH = 32  # images measured at a time
SAMPLED = 16  # images sampled at a time
CRITERION = JURY  # by which a network is recommended; its record: docs/results/benchmark
FEWEST_JURORS = 5  # each is judged by the others: of fewer, the best one by too few that are worse
AT_HOME = ("mean_iou", "ci95", "ci_unit", "ece", "nll", "boundary", "n_test", "n_subjects")  # on the labelled device


class Judging:
    """Work of the stages of a run that measure something."""

    def __init__(self, run: Run, runner: Runner) -> None:
        self.run, self.runner = run, runner

    # ------------------------------------------------------------------ what a run has made

    def network(self, setup: str) -> nn.Module:
        """The segmentation network of a set-up."""
        run = self.run
        return from_bundle(run.network_dir(setup), weights=str(run.weights(setup)), device=run.device)

    def autoencoder(self) -> AutoencoderKL:
        """The autoencoder."""
        root = self.run.bundle_dir("latent_diffusion")
        return from_bundle(root, "autoencoder_def", "autoencoder.pt", self.run.device)

    def generator(self, variant: str, weight: float | None = None) -> Generator:
        """The generator of a variant, as its bundle that draws wires it; with another weight if one is given."""
        run, mode = self.run, self.run.mode(variant)
        own = {"uncertainty_weight": run.weight(variant) if weight is None else weight, "device": str(run.device)}
        root, settings = run.drawing_dir(variant), run.settings.sampling(mode) | own
        return from_bundle(root, "generator", settings=settings)

    def prior(self, variant: str) -> UncertaintyPrior:
        """The prior of a variant; one that another segmentation network measured is refused."""
        return load_prior(self.run.prior(variant), self.run.bundle_dir("retinal_unet", variant))

    def features(self) -> Features:
        """The feature network: the file that was given, or the one trained here."""
        given, device = self.run.settings.features or {}, self.run.device
        if given.get("path"):
            own = given["path"], given["sha256"], given["preprocessing"]
            return Features.from_file(*own, device, given.get("arguments"))
        return Features.from_encoder(self.run.features_path, device)

    def words(self) -> dict[str, Any]:
        """What makes :class:`Requests` name the unlabelled domain's sub-domains in turn; nothing without words."""
        root = self.run.bundle_dir("latent_diffusion")
        return {key: from_bundle(root, key) for key in ("template", "subdomains")}

    def requests(self, count: int, prior: UncertaintyPrior | None = None) -> Requests:
        """Images of label maps that no network was trained on."""
        run = self.run
        return Requests(count, run.settings.seed, run.labeled, "validation", uncertainty=prior, **self.words())

    def examples(self, count: int) -> list[Request]:
        """Requests for some of those label maps, spread over the subjects."""
        everything = self.requests(len(datalist(self.run.labeled, "validation")))
        return [everything[i] for i in evenly(len(everything), count)]

    def uncertainty(self, prior: UncertaintyPrior, variant: str) -> Callable[[Tensor], Tensor]:
        """The uncertainty of images as it was measured for the prior of a variant."""
        root, device = self.run.bundle_dir("retinal_unet", variant), self.run.device
        return fusion_weight.measure_of(prior, from_bundle(root, weights="model.pt", device=device), root, device)

    def known(self, folder: Path, variant: str = "") -> np.ndarray:
        """The uncertainties of a real data set that were measured for the prior."""
        table = self.run.uncertainties(variant or self.run.settings.main)
        return read_uncertainties(table, datalist(folder, "training")).double().numpy()

    def asked(self, variant: str) -> tuple[float, float]:
        """The ends of grids: what labelled images have, and what of the unlabelled ones' is farthest from it."""
        begin = float(self.known(self.run.labeled, variant).mean())
        return begin, self.prior(variant).farthest(begin)

    # ------------------------------------------------------------------ autoencoder and diffusion model

    def reconstructions(self) -> dict[str, Any]:
        """What the autoencoder keeps of the validation images of both domains; a run that goes on anyway is warned."""
        run, network, found = self.run, self.autoencoder(), {}
        for name, folder in run.domains.items():
            items = datalist(folder, "validation")
            paths = [str(items[i]["image"]) for i in evenly(len(items), IMAGES)]
            channels, side = run.num_channels, downsampling(network)
            found[name] = kept(paths, lambda image: network.reconstruct(image.to(run.device)), channels, side)
        if run.forced and (what := lost(found)):
            logger.warning(f"{what} The run goes on because of --force: all that follows is trained on such images.")
        return found

    def refuse_unusable(self) -> None:
        """End a run whose autoencoder does not keep the images; a forced one goes on, and is marked.

        Raises:
            ValueError: naming domain, value and bound, and what to do.
        """
        if not (what := lost(self.run.results["reconstructions"])):
            return
        if not self.run.forced:
            sheets = self.run.run_dir / "bundles" / "latent_diffusion" / "output" / "autoencoder"
            raise ValueError(
                "All that follows would be trained on the images of an autoencoder that does not keep them. Look at "
                f"the sheets in '{sheets}' and train it longer (max_epochs of train_autoencoder.json of "
                "latent_diffusion, in overrides) with another --output, or go on in spite of it with --resume --force. "
                f"{what}"
            )
        self.run.results["forced"] = what

    @torch.no_grad()
    def textures(self) -> dict[str, dict[str, list[float]]]:
        """Does the autoencoder keep the speckle? Of validation images and their reconstructions, per domain."""
        run, network, autoencoder, found = self.run, self.network("lower_bound"), self.autoencoder(), {}
        for name, folder in run.domains.items():
            channels, measured = run.num_channels, []
            for item in datalist(folder, "validation"):
                image = read_image(item["image"], channels)[None].to(run.device)
                both = image, autoencoder.reconstruct(image).clamp(0, 1)
                measured.append([(high_pass_std(x).item(), image_uncertainty(network(x)).item()) for x in both])
            speckle, entropy = np.mean(measured, axis=0).T.tolist()
            found[name] = {"high_pass_std": speckle, "entropy": entropy}
        return found

    @torch.no_grad()
    def latents(self) -> dict[str, Any]:
        """Standard deviation of sampled latents over that of the training latents, 0.9 to 1.1 for a trained model.

        The training's are of both domains; so, with words, every second sample is asked for without. Also how right
        the sampler is, of which too small a spread may come.
        """
        run, told = self.run, self.words()
        root = run.bundle_dir("latent_diffusion")
        told["subdomains"] = [name for asked in told["subdomains"] or [] for name in (asked, "")]
        generator: Generator = from_bundle(root, "generator", settings={"device": str(run.device)})
        data = list(run.domains.values())
        dataset = LatentDataset(data, "training", self.autoencoder(), root / "models" / "latents")
        requests = Requests(LATENTS, run.settings.seed, **told)
        sampled = [generator.latents(requests[start : start + SAMPLED]) for start in range(0, LATENTS, SAMPLED)]
        training = float(dataset.mean[0].double().square().mean() + dataset.std[0].double().square().mean()) ** 0.5
        ratio = float(torch.cat(sampled).double().square().mean().sqrt()) / (training * generator.ldm.scale_factor)
        return {"latent_std": ratio, "n": LATENTS, "sampler": describe(generator.ldm.scheduler, generator.steps)}

    def warn_of_images(self) -> None:
        """Say what of both is not as it should be."""
        for expected, found, good in image_checks(Results.of(self.run.results)):
            if good is False:
                logger.warning(f"{expected}; found {found}. What follows rests on it: look at the sheets of samples.")

    # ------------------------------------------------------------------ scores and control

    def scores(self, setup: str) -> dict[str, Any]:
        """Scores of a set-up on the unlabelled domain's test images, over its trainings.

        Beside them "labelled_device": what adaptation costs at home; and "validation": {"mean_iou"}, of the unlabelled
        domain's validation images, by which the strongest opponent is chosen, and nothing else.
        """
        run, scorers = self.run, list[Scorer]()
        root, records = run.network_dir(setup), self.records(setup)
        for i in range(run.settings.trainings):
            file, weights = root / "configs" / "evaluate.json", run.weights(setup, i)
            self.runner.note(file, dataset_dir=run.unlabeled, split="test", ckpt_path=weights)
            scorers.append(Scorer(root, weights, run.device))
        found = self.scored(scorers, run.unlabeled, "test", records)
        found |= comparison.sub_domain_scores(records, run.unlabeled, "test", run.settings.seed)
        labelled = self.on_labelled_device(scorers, self.records(setup, "labelled_device"))
        return found | {"labelled_device": labelled, "validation": self.on_validation_images(scorers)}

    def records(self, setup: str, device: str = "") -> list[Path]:
        """Files for what is counted for each training of a set-up."""
        return [self.run.record(setup, i, device) for i in range(self.run.settings.trainings)]

    def scored(self, scorers: list[Scorer], folder: Path, split: str, records: list[Path]) -> dict[str, Any]:
        """Scores of the trainings of a set-up on a split; what they rest on is kept in ``records``."""
        each, seed = [], self.run.settings.seed
        for scorer, record in zip(scorers, records, strict=True):
            counts = scorer.counts(folder, split)
            counts.save(record)
            each.append(summarise(counts, seed))
        return each[0] if len(each) == 1 else comparison.score_trainings(each, records, seed)

    def on_labelled_device(self, scorers: list[Scorer], records: list[Path]) -> dict[str, Any]:
        """Scores on the labelled domain's test images, or validation images where none of these has a label map."""
        maps = label_map_counts(read_header(self.run.labeled))
        split = next((name for name in ("test", "validation") if maps[name][0]), None)
        if split is None:
            return {"not_computed": "no test or validation image of the labelled domain has a label map"}
        found = self.scored(scorers, self.run.labeled, split, records)
        return {"split": split} | {key: found[key] for key in AT_HOME}

    def on_validation_images(self, scorers: list[Scorer]) -> dict[str, Any]:
        """Mean IoU on the unlabelled domain's validation images, the mean over the trainings."""
        if not self.run.label_maps["validation"][0]:
            return {"not_computed": "no validation image of the unlabelled domain has a label map"}
        each = [np.sum(scorer.counts(self.run.unlabeled, "validation").confusion, axis=0) for scorer in scorers]
        return {"mean_iou": comparison.mean_of([or_none(scores(confusion)["mean_iou"]) for confusion in each])}

    def recommend(self, setups: Sequence[str]) -> dict[str, Any]:
        """Which of these networks to use on the unlabelled device, and what to expect, without one of its labels.

        Of several trainings of a set-up the first is looked at. The images are those that networks may be trained on;
        what confidence is worth, and what guesses teach, is measured on the labelled domain's validation images.
        """
        run, labels = self.run, len(self.run.results["labels"])
        networks = {name: self.network(name) for name in setups}
        splits = [split for split in SPLITS[:2] if read_header(run.unlabeled).get(split)]
        items = datalist(run.unlabeled, splits)
        labelled = partial(self.labelled_batches, run.labeled)
        temperatures = fit_temperatures(networks, labelled())
        changes = disturbances([item["image"] for item in items], run.settings.seed)
        lines = fit_lines(networks, labelled, changes, labels, temperatures)
        seen = judge(networks, self.batches(items), labels, temperatures, run.settings.seed)
        more = {REVERSE: seen[1].scores(labelled())}
        if run.setup(run.settings.main) in setups:
            synthetic = self.labelled_batches(run.synthetic(run.settings.main))
            more[SYNTHETIC] = score_on(networks, synthetic, labels)
        subjects = [str(item.get("subject", item["image"])) for item in items]
        jurors = [name for name in setups if not self.is_taught_by_guesses(name)]
        criterion = CRITERION if len(jurors) >= FEWEST_JURORS else CALIBRATED
        if criterion != CRITERION:
            logger.info(f"   {len(jurors)} networks are no jury: what each is expected to be worth decides")
        return recommend(seen[0], criterion, lines, jurors, subjects, more)

    def is_taught_by_guesses(self, setup: str) -> bool:
        """Whether what a network saw on the unlabelled images was guessed by another: such a one judges no others."""
        run = self.run
        taught = {"joint": True, "compositional": run.settings.teaches, "paper": False}
        ours = [run.setup(variant) for variant in run.variants if taught[run.mode(variant)]]
        return setup in GUESSED_ON or setup.split("+")[0] in ours

    def batches(self, items: Sequence[dict[str, Any]], size: int = SAMPLED) -> Iterator[Tensor]:
        """Images of a data set, a few at a time."""
        return image_batches([item["image"] for item in items], self.run.num_channels, self.run.device, size)

    def labelled_batches(self, folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation images of a data set that have a label map, with it."""
        items = scored_items(folder, "validation", tell=False)
        truth = true_labels(items, len(self.run.results["labels"]))[:, None].to(self.run.device)
        return zip(self.batches(items), truth.split(SAMPLED), strict=True)

    def fusion_weight(self, variant: str) -> dict[str, Any]:
        """Control and label fidelity against the fusion weight, and the weight to take (see ``fusion_weight.py``).

        The table is empty where all label maps are the same.
        """
        run, prior = self.run, self.prior(variant)
        oracle = "upper_bound" if run.has_upper else None
        found: dict[str, Any] = {"table": [], "judge": "augmentation", "oracle": oracle}
        try:
            found["table"] = fusion_weight.control_over_weights(
                self.generator(variant, weight=0.0),
                self.requests(WEIGHT_MAPS, prior)[:],
                self.uncertainty(prior, variant),
                self.network("augmentation"),
                folder=run.run_dir / "pictures" / f"weights_{run.setup(variant)}",
                oracle=None if oracle is None else self.network(oracle),
            )
            weight, reason = fusion_weight.choose_weight(found["table"])
        except fusion_weight.NoWeight as error:
            if run.settings.weight(run.mode(variant)) == "auto":
                raise
            return found | {"weight": None, "reason": f"no weight: {error}"}
        logger.info(f"   without labels one would take {reason}")
        return found | {"weight": weight, "reason": reason}

    @torch.no_grad()
    def control(self, variant: str) -> dict[str, Any]:
        """Requested against measured uncertainty of the same label maps, and label fidelity of the synthetic images."""
        run, prior, oracle = self.run, self.prior(variant), self.run.oracle
        generator, maps, uncertainty = self.generator(variant), self.requests(MAPS)[:], self.uncertainty(prior, variant)
        curve, requested, measured = [], [], []
        for value in np.linspace(*self.asked(variant), GRID).tolist():
            u = uncertainty(generator([*with_uncertainty(maps, value)])).cpu().numpy()
            curve.append({"requested": value, "measured_mean": float(u.mean()), "measured_std": float(u.std())})
            requested += [value] * len(u)
            measured += u.tolist()
        found = fusion_weight.agreement(np.array(requested), np.array(measured))
        items, labels = datalist(run.synthetic(variant), "training", ("image", "label")), len(run.results["labels"])
        seen = predict_labels(self.network(oracle), [item["image"] for item in items], run.device, run.num_channels)
        load = LoadPixelsd(["label"], num_labels=labels)
        asked = torch.stack([load.read_label(item["label"])[0] for item in items])
        scores = run.results["segmentation"].get(oracle, {})  # the judge is the network of the first training
        return {
            **{key: found[key] for key in ("spearman", "mean_absolute_error")},
            "curve": curve,
            "label_fidelity_mean_iou": fusion_weight.overlap_of(seen, asked, labels),
            "oracle": f"segmentation network of '{oracle}'",
            "oracle_mean_iou": scores.get("trainings", {}).get("mean_iou", [scores.get("mean_iou")])[0],
        }

    # ------------------------------------------------------------------ sets of images

    def train_features(self) -> dict[str, float]:
        """Train the default feature network: {"masked_error": mean absolute error of the grey values it fills in}."""
        run, sets = self.run, list(self.run.domains.values())
        length, seed = (run.settings.features or {}).get("iterations", 1000), run.settings.seed
        error = train_encoder(sets, run.features_path, run.num_channels, length, seed=seed, device=run.device)
        return {"masked_error": error}

    @torch.no_grad()
    def uncertainties(self) -> None:
        """Mean and standard deviation of the uncertainty of each set, and all values for the histogram.

        All are measured with the lower bound's network, also those of further rounds, so that they can be compared.
        """
        run = self.run
        values = {name: self.known(folder) for name, folder in run.domains.items()}
        main = run.settings.main
        uncertainty = self.uncertainty(self.prior(main), main)
        for name, folder in run.synthetic_sets.items():
            parts = [uncertainty(images).cpu() for images in self.batches(datalist(folder, "training"), BATCH)]
            values[name] = torch.cat(parts).numpy()
        run.results["uncertainty"] = {
            name: {"mean": float(v.mean()), "std": float(v.std()), "n": len(v)} for name, v in values.items()
        }
        rounded = {name: [round(float(x), 6) for x in v] for name, v in values.items()}
        write_json(run.run_dir / "uncertainties.json", rounded)

    @torch.no_grad()
    def looks(self) -> dict[str, Any]:
        """Have the synthetic images the look of the unlabelled device, and is there a mesh over them?

        "accuracy" of the classifier of looks, on real validation images, and "real" the share of the unlabelled ones in
        that device's look; "sets": {name: {"in_look", "mesh"}}, of training images.
        """
        run, features = self.run, self.features()
        side, sets = downsampling(self.autoencoder()), run.domains | run.synthetic_sets
        found: dict[str, dict[str, Any]] = {name: {} for name in sets}
        real = spectra(self.batches(datalist(run.unlabeled, "training"), BATCH), side)
        for name, folder in run.synthetic_sets.items():
            own = spectra(self.batches(datalist(folder, "training"), BATCH), side)
            found[name]["mesh"] = or_none(strongest_line(own, real, side))
        try:
            look, worth = self.look(features)
        except copies.TooFewImages as reason:
            return {"side": side, "sets": found, "not_computed": str(reason)}
        for name, folder in sets.items():
            found[name]["in_look"] = look.in_look(self.seen(features, folder, "training"))
        return worth | {"side": side, "sets": found}

    def look(self, features: Features) -> tuple[Look, dict[str, float]]:
        """The classifier of both devices' looks, and what it is worth on real validation images: "accuracy", "real"."""
        folders = self.run.domains.values()
        labelled, unlabelled = (self.seen(features, folder, "validation") for folder in folders)
        if min(len(labelled), len(unlabelled)) < FEWEST_VALIDATED:
            raise copies.TooFewImages(
                f"{len(labelled)} and {len(unlabelled)} validation images; {FEWEST_VALIDATED} of each device are the "
                "least that can say whether looks are told apart"
            )
        look = Look.fit(*(self.seen(features, folder, "training") for folder in folders))
        return look, {"accuracy": look.accuracy(labelled, unlabelled), "real": look.in_look(unlabelled)}

    def seen(self, features: Features, folder: Path, split: str) -> np.ndarray:
        """The features of a data set's images."""
        return np.asarray(features.of(datalist(folder, split), self.run.num_channels))

    @torch.no_grad()
    def drawn(self, variant: str) -> dict[str, Any]:
        """Does a generator draw the unlabelled device, at its uncertainties? Of label maps that no network has seen.

        "in_look": share of the images in its look; "accuracy" of the classifier that says so; "n" images; "sampler".
        """
        chosen = self.run.settings.weight(self.run.mode(variant)) != "auto"  # else it will be, by these images' like
        features, generator = self.features(), self.generator(variant, None if chosen else 1.0)
        sampler = {"sampler": describe(generator.ldm.scheduler, generator.steps)}
        try:
            look, worth = self.look(features)
        except copies.TooFewImages as reason:
            logger.warning(f"Whether images look like the unlabelled device is not known: {reason}.")
            return sampler | {"not_computed": str(reason)}
        requests = self.requests(LATENTS, self.prior(variant))
        parts = [features(generator(requests[i : i + SAMPLED])) for i in range(0, LATENTS, SAMPLED)]
        share = look.in_look(np.concatenate([part.cpu().numpy() for part in parts]))
        logger.info(f"   {share:.0%} of {LATENTS} images look like the unlabelled device")
        return sampler | {"in_look": share, "accuracy": worth["accuracy"], "n": LATENTS}

    def refuse_other_look(self, variant: str) -> None:
        """End a run whose generator draws the labelled device where the other was asked for; a forced one goes on.

        Raises:
            ValueError: fewer images look like the unlabelled device than not, and real images can be told apart.
        """
        found = self.run.results["drawn"][self.run.setup(variant)]
        if "not_computed" in found or found["in_look"] >= DRAWN:
            return
        if found["accuracy"] < TOLD_APART:
            logger.warning(
                f"{found['in_look']:.0%} of the images look like the unlabelled device, by a classifier that is right "
                f"on {found['accuracy']:.0%} of real images only: nobody can say what look they have."
            )
            return
        what = (
            f"{found['in_look']:.0%} of the generator's images look like the unlabelled device at its uncertainties; "
            f"expected {DRAWN:.0%} at least, by a classifier that is right on {found['accuracy']:.0%} of real images."
        )
        if not self.run.forced:
            raise ValueError(
                f"{what} Networks trained on them would learn the wrong device. Train it longer (max_epochs of "
                "train.json of joint, in overrides) with another --output, or go on in spite of it with --resume "
                "--force."
            )
        self.run.results["forced"] = " ".join(filter(None, [self.run.results.get("forced"), what]))
        logger.warning(what)

    def distances(self) -> dict[str, Any]:
        """Table 2: FID and KID between every pair of the run's sets of training images."""
        run, features, found = self.run, self.features(), {}
        for name, folder in (run.domains | run.synthetic_sets).items():
            items = datalist(folder, "training")
            subjects = [str(item.get("subject")) for item in items]
            found[name] = FeatureSet(features.of(items, run.num_channels), subjects)
        return distances(found, features.name, list(run.domains), run.settings.seed)

    def copies(self) -> dict[str, Any]:
        """Audit the main synthetic data set against every real image a generative network has seen.

        Held out are the validation images of both domains, and the test images of those that have some; the control set
        is made here from the labelled domain's validation label maps. No label of the unlabelled domain is looked at:
        the retrained segmentation network gives one where it is needed.
        """
        run, features, both = self.run, self.features(), ("image", "label")
        labels, channels, network = len(run.results["labels"]), run.num_channels, self.network("unicorn+real")

        def read(items: list[dict[str, Any]]) -> copies.Material:
            return copies.gather(items, features, labels, channels, network, run.device)

        def real(ours: list[str], theirs: list[str]) -> copies.Material:
            others = [{k: v for k, v in item.items() if k != "label"} for item in datalist(run.unlabeled, theirs)]
            others = [x | {"guessed_label": names[n]} if (n := Path(x["image"]).name) in names else x for x in others]
            return read(datalist(run.labeled, ours, both) + others)

        ours, theirs = (
            [split for split in ("validation", "test") if read_header(folder).get(split)]
            for folder in run.domains.values()
        )
        main, augment, seed = run.settings.main, run.settings.changes_geometry(), run.settings.seed
        names = self.guessed_labels() if main == "joint" else {}
        count = CONTROL if augment else min(CONTROL, len(datalist(run.labeled, "validation")))
        words, prior = self.words(), self.prior(main)
        unseen = Requests(count, seed + 1, run.labeled, "validation", uncertainty=prior, augment=augment, **words)
        try:
            sets = copies.Audited(
                read(datalist(run.synthetic(main), "training", both)),
                real(["training"], ["training"]),
                real(ours, theirs),
                control_set(self.generator(main), unseen, features),
            )
            return copies.audit(sets, features, run.run_dir / "memorization", seed=seed)
        except copies.TooFewImages as reason:
            return {"not_computed": str(reason)}

    def guessed_labels(self) -> dict[str, str]:
        """Unlabelled training image -> the label map that the teacher guessed for it, as synthetic images name it."""
        folder = self.run.guessed("joint")
        items = datalist(folder, "training", ("image", "label"))
        return {x["pseudo_label"]["source_image"]: f"{folder.name}/{Path(x['label']).name}" for x in items}

    def pictures(self) -> None:
        """Write RUN/pictures/*.png and captions.json."""
        run = self.run
        main, settings, channels = run.settings.main, run.settings, run.num_channels
        real = {name: pictures.examples(folder, channels) for name, folder in run.domains.items()}
        examples = self.examples(min(len(images) for images in real.values()))
        colours, shown = palette(read_header(run.labeled), channels), [real["unlabeled"], real["labeled"]]
        sheets = []
        for mode in settings.modes:
            generator, requests = self.generator(mode), with_uncertainty(examples, self.prior(mode).mean)
            sheets.append(pictures.side_by_side(generator, requests, shown, colours, settings.words))
            sheets.append(pictures.rising(generator, requests[:3], *self.asked(mode)))
        measured = read_json(run.run_dir / "uncertainties.json")
        made, there = measured[run.setup(main)], measured["unlabeled"]
        sets = {"synthetic": (run.synthetic(main), made), "real": (run.unlabeled, there)}
        sheets.append(pictures.by_uncertainty(sets, channels))
        sheets.append(pictures.reconstructed(self.autoencoder(), real.values()))
        pictures.write_all(run.run_dir / "pictures", sheets)


@torch.no_grad()
def control_set(generator: Generator, requests: Requests, features: Features) -> copies.Material:
    """Images synthesised like a data set, but from label maps that no network was trained on."""
    parts = []
    for start in range(0, len(requests), SAMPLED):
        batch = requests[start : start + SAMPLED]
        labels = generator.labels(batch)
        images = generator(batch, labels).cpu()
        parts.append((images.half(), labels[:, 0].to(torch.uint8), features(images)))  # type: ignore[index]
    images, labels, found = (torch.cat(part) for part in zip(*parts, strict=True))
    return copies.Material([{}] * len(requests), images, labels, found)
