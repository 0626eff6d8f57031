from .bundle.installation import install as install
from .bundle.references import from_bundle as from_bundle
from .bundle.run import run_bundle as run_bundle
from .controlnets import controlnet_for as controlnet_for
from .data.items import datalist as datalist
from .data.writer import About as About
from .data.writer import DatasetWriter as DatasetWriter
from .experiment.experiment import Experiment as Experiment
from .experiment.settings import Settings as Settings
from .fusion import fuse_residuals as fuse_residuals
from .fusion import mode_weights as mode_weights
from .images.files import read_array as read_array
from .images.files import write_array as write_array
from .inferers import DualControlNetInferer as DualControlNetInferer
from .latent_diffusion import LatentDiffusion as LatentDiffusion
from .model import UnIACorN as UnIACorN
from .prior import UncertaintyPrior as UncertaintyPrior
from .synthesis.generator import Generator as Generator
from .synthesis.requests import Request as Request
from .synthesis.requests import Requests as Requests
from .uncertainty import (
    image_uncertainty as image_uncertainty,
)
from .uncertainty import (
    normalised_entropy as normalised_entropy,
)
from .uncertainty import (
    predictive_entropy as predictive_entropy,
)
