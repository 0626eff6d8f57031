"""What the stages measure: the networks, the generator and the folders of a run, handed to the evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from monai.networks.nets import AutoencoderKL
from torch import nn

from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import read_header
from unicorn_monai.data.uncertainties import read_uncertainties
from unicorn_monai.diffusion.bundle_models import load_prior
from unicorn_monai.diffusion.latents import LatentDataset
from unicorn_monai.evaluation.comparison import score_trainings, sub_domain_scores
from unicorn_monai.evaluation.copies import Audited, Material, TooFewImages, audit, gather
from unicorn_monai.evaluation.distribution import FeatureSet, distances
from unicorn_monai.evaluation.features import Features, train_encoder
from unicorn_monai.evaluation.fusion_weight import NoWeight, choose_weight, control_over_weights, measure_of
from unicorn_monai.evaluation.scoring import score_images
from unicorn_monai.experiment import measures, pictures, reconstructions
from unicorn_monai.experiment.run import Run
from unicorn_monai.experiment.runner import Runner
from unicorn_monai.images.pictures import evenly, palette
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.report.checks import image_checks
from unicorn_monai.report.results import Results
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, Requests, with_uncertainty
from unicorn_monai.system.files import read_json, write_json

logger = logging.getLogger("unicorn_monai")

LATENTS = 64  # sampled for their spread
MAPS = 12  # label maps at each uncertainty of a grid
WEIGHT_MAPS = 32  # label maps at each fusion weight
CONTROL = 128  # images from label maps that no network was trained on


class Judging:
    """Work of the stages of a run that measure something.

    Args:
        run: says where everything lies.
        runner: keeps commands.
    """

    def __init__(self, run: Run, runner: Runner) -> None:
        self.run, self.runner = run, runner

    # ------------------------------------------------------------------ what a run has made

    def network(self, setup: str) -> nn.Module:
        """The segmentation network of a set-up."""
        run = self.run
        return from_bundle(run.bundle_dir("retinal_unet"), weights=str(run.weights(setup)), device=run.device)

    def autoencoder(self) -> AutoencoderKL:
        """The autoencoder."""
        root = self.run.bundle_dir("latent_diffusion")
        return from_bundle(root, "autoencoder_def", "autoencoder.pt", self.run.device)

    def generator(self, variant: str, weight: float | None = None) -> Generator:
        """The generator of a variant, as its synthesis bundle wires it; with another weight if one is given."""
        run, mode = self.run, self.run.mode(variant)
        own = {"uncertainty_weight": run.weight(variant) if weight is None else weight, "device": str(run.device)}
        return from_bundle(
            run.bundle_dir("synthesis", variant), "generator", settings=run.settings.sampling(mode) | own
        )

    def prior(self, variant: str) -> UncertaintyPrior:
        """The prior of a variant; one that another segmentation network measured is refused."""
        return load_prior(self.run.prior(variant), self.run.bundle_dir("retinal_unet", variant))

    def features(self) -> Features:
        """The feature network: the file that was given, or the one trained here."""
        given = self.run.settings.features or {}
        if given.get("path"):
            arguments = given.get("arguments")
            return Features.from_file(
                given["path"], given["sha256"], given["preprocessing"], self.run.device, arguments
            )
        return Features.from_encoder(self.run.features_path, self.run.device)

    def words(self) -> dict[str, Any]:
        """What makes :class:`Requests` name the unlabelled domain's sub-domains in turn; nothing without words."""
        root = self.run.bundle_dir("latent_diffusion")
        return {key: from_bundle(root, key) for key in ("template", "subdomains")}

    def requests(self, count: int, prior: UncertaintyPrior | None = None) -> Requests:
        """Images of label maps that no network was trained on."""
        run = self.run
        return Requests(count, run.settings.seed, run.labeled, "validation", uncertainty=prior, **self.words())

    def examples(self, count: int) -> list[Request]:
        """Some of them, spread over the subjects."""
        total = len(datalist(self.run.labeled, "validation"))
        everything = self.requests(total)
        return [everything[i] for i in evenly(total, count)]

    def uncertainty(self, prior: UncertaintyPrior, variant: str) -> measures.Measured:
        """The uncertainty of images as it was measured for the prior of a variant."""
        root, device = self.run.bundle_dir("retinal_unet", variant), self.run.device
        return measure_of(prior, from_bundle(root, weights="model.pt", device=device), root, device)

    def known(self, folder: Path, variant: str = "") -> np.ndarray:
        """The uncertainties of a real data set that were measured for the prior."""
        table = self.run.bundle_dir("retinal_unet", variant) / "models" / "uncertainties.json"
        return read_uncertainties(table, datalist(folder, "training")).double().numpy()

    # ------------------------------------------------------------------ autoencoder and diffusion model

    def reconstructions(self) -> dict[str, Any]:
        """What the autoencoder keeps of the validation images of both domains."""
        run = self.run
        return reconstructions.measure(self.autoencoder(), run.domains, run.num_channels, run.device, run.forced)

    def refuse_unusable(self) -> None:
        """End a run whose autoencoder does not keep the images; a forced one goes on, and is marked."""
        reconstructions.refuse_unusable(self.run.results, self.run.run_dir, self.run.forced)

    def textures(self) -> dict[str, Any]:
        """Does the autoencoder keep the speckle?"""
        run = self.run
        network = self.network("lower_bound")
        return measures.reconstruction(self.autoencoder(), network, run.domains, run.num_channels, run.device)

    def latents(self) -> dict[str, Any]:
        """Does the diffusion model keep the spread of the latents?

        Those are of both domains; with words, every second image is asked for without, as the labelled ones are told.
        """
        run, told = self.run, self.words()
        root = run.bundle_dir("latent_diffusion")
        told["subdomains"] = [name for asked in told["subdomains"] or [] for name in (asked, "")]
        generator: Generator = from_bundle(root, "generator", settings={"device": str(run.device)})
        data = list(run.domains.values())
        dataset = LatentDataset(data, "training", self.autoencoder(), root / "models" / "latents")
        return measures.latent_statistics(generator, Requests(LATENTS, run.settings.seed, **told), dataset)

    def warn_of_images(self) -> None:
        """Say what of both is not as it should be."""
        for expected, found, good in image_checks(Results.of(self.run.results)):
            if good is False:
                logger.warning(f"{expected}; found {found}. What follows rests on it: look at the sheets of samples.")

    # ------------------------------------------------------------------ segmentation networks

    def scores(self, setup: str) -> dict[str, Any]:
        """Scores of a set-up on the unlabelled domain's test images, over its trainings."""
        run, trainings = self.run, range(self.run.settings.trainings)
        seed, records = run.settings.seed, [run.record(setup, i) for i in trainings]
        root = run.bundle_dir("retinal_unet")
        for i in trainings:
            file, weights = root / "configs" / "evaluate.json", run.weights(setup, i)
            self.runner.note(file, dataset_dir=run.unlabeled, split="test", ckpt_path=weights)
        each = [
            score_images(root, run.weights(setup, i), run.unlabeled, "test", seed, run.device, record)
            for i, record in enumerate(records)
        ]
        found = each[0] if len(each) == 1 else score_trainings(each, records, seed)
        return found | sub_domain_scores(records, run.unlabeled, "test", seed)

    # ------------------------------------------------------------------ control

    def fusion_weight(self, variant: str) -> dict[str, Any]:
        """Control and label fidelity against the fusion weight, and the weight to take (see ``fusion_weight.py``).

        Returns:
            "table" of :func:`control_over_weights` (empty where all label maps are the same), "weight" and "reason" of
            :func:`choose_weight`, "judge", "oracle".
        """
        run, prior = self.run, self.prior(variant)
        oracle = "upper_bound" if run.has_upper else None
        found: dict[str, Any] = {"table": [], "judge": "augmentation", "oracle": oracle}
        try:
            found["table"] = control_over_weights(
                self.generator(variant, weight=0.0),
                self.requests(WEIGHT_MAPS, prior)[:],
                self.uncertainty(prior, variant),
                self.network("augmentation"),
                folder=run.run_dir / "pictures" / f"weights_{run.setup(variant)}",
                oracle=None if oracle is None else self.network(oracle),
            )
            weight, reason = choose_weight(found["table"])
        except NoWeight as error:
            if run.settings.weight(run.mode(variant)) == "auto":
                raise
            return found | {"weight": None, "reason": f"no weight: {error}"}
        logger.info(f"   without labels one would take {reason}")
        return found | {"weight": weight, "reason": reason}

    def control(self, variant: str) -> dict[str, Any]:
        """Requested against measured uncertainty, and label fidelity of the synthetic data set."""
        run, prior, oracle = self.run, self.prior(variant), self.run.oracle
        found = measures.measure(
            self.generator(variant),
            self.requests(MAPS)[:],
            self.uncertainty(prior, variant),
            least=self.known(run.labeled, variant).mean(),
            most=min(1.0, prior.mean + 2 * prior.std),
        )
        images, labels, channels = run.synthetic(variant), len(run.results["labels"]), run.num_channels
        scores = run.results["segmentation"].get(oracle, {})  # the judge is the network of the first training
        each = scores.get("trainings", {}).get("mean_iou", [scores.get("mean_iou")])
        return found | {
            "label_fidelity_mean_iou": measures.label_fidelity(
                self.network(oracle), images, labels, channels, run.device
            ),
            "oracle": f"segmentation network of '{oracle}'",
            "oracle_mean_iou": each[0],
        }

    # ------------------------------------------------------------------ sets of images

    def train_features(self) -> dict[str, float]:
        """Train the default feature network: {"masked_error": mean absolute error of the grey values it fills in}."""
        run, sets = self.run, list(self.run.domains.values())
        length, seed = (run.settings.features or {}).get("iterations", 1000), run.settings.seed
        error = train_encoder(sets, run.features_path, run.num_channels, length, seed=seed, device=run.device)
        return {"masked_error": error}

    def uncertainties(self) -> None:
        """Mean and standard deviation of the uncertainty of each set, and all values for the histogram.

        All are measured with the lower bound's network, also those of further rounds, so that they can be compared.
        """
        run = self.run
        values = {name: self.known(folder) for name, folder in run.domains.items()}
        main = run.settings.modes[0]
        uncertainty = self.uncertainty(self.prior(main), main)
        for name, folder in run.synthetic_sets.items():
            values[name] = measures.measured_in(folder, uncertainty, run.num_channels, run.device)
        run.results["uncertainty"] = {
            name: {"mean": float(v.mean()), "std": float(v.std()), "n": len(v)} for name, v in values.items()
        }
        write_json(
            run.run_dir / "uncertainties.json", {name: [round(float(x), 6) for x in v] for name, v in values.items()}
        )

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

        def read(items: list[dict[str, Any]]) -> Material:
            return gather(items, features, labels, channels, network, run.device)

        def real(ours: list[str], theirs: list[str]) -> Material:
            others = [{k: v for k, v in item.items() if k != "label"} for item in datalist(run.unlabeled, theirs)]
            return read(datalist(run.labeled, ours, both) + others)

        ours, theirs = (
            [split for split in ("validation", "test") if read_header(folder).get(split)]
            for folder in run.domains.values()
        )
        main, augment, seed = run.settings.modes[0], run.settings.changes_geometry(), run.settings.seed
        count = CONTROL if augment else min(CONTROL, len(datalist(run.labeled, "validation")))
        words, prior = self.words(), self.prior(main)
        unseen = Requests(count, seed + 1, run.labeled, "validation", uncertainty=prior, augment=augment, **words)
        try:
            sets = Audited(
                read(datalist(run.synthetic(main), "training", both)),
                real(["training"], ["training"]),
                real(ours, theirs),
                measures.control_set(self.generator(main), unseen, features),
            )
            return audit(sets, features, run.run_dir / "memorization", seed=seed)
        except TooFewImages as reason:
            return {"not_computed": str(reason)}

    def pictures(self) -> None:
        """Write RUN/pictures/*.png and captions.json."""
        run = self.run
        main, settings, channels = run.settings.modes[0], run.settings, run.num_channels
        real = {name: pictures.examples(folder, channels) for name, folder in run.domains.items()}
        prior = self.prior(main)
        requests = with_uncertainty(self.examples(min(len(images) for images in real.values())), prior.mean)
        colours, shown = palette(read_header(run.labeled), channels), [real["unlabeled"], real["labeled"]]
        sheets = []
        for mode in settings.modes:
            generator = self.generator(mode)
            sheets.append(pictures.side_by_side(mode, generator, requests, shown, colours, settings.words))
            sheets.append(pictures.rising(mode, generator, requests[:3], min(1.0, prior.mean + 2 * prior.std)))
        measured = read_json(run.run_dir / "uncertainties.json")
        sets = {
            "synthetic": (run.synthetic(main), measured[run.setup(main)]),
            "real": (run.unlabeled, measured["unlabeled"]),
        }
        sheets += [
            pictures.by_uncertainty(sets, channels),
            pictures.reconstructed(self.autoencoder(), real.values()),
        ]
        pictures.write_all(run.run_dir / "pictures", sheets)
