from .autoencoder import AutoencoderLoss as AutoencoderLoss
from .autoencoder import narrow_posterior as narrow_posterior
from .bundle_models import (
    base_controlnet as base_controlnet,
)
from .bundle_models import (
    load_latent_diffusion as load_latent_diffusion,
)
from .bundle_models import (
    load_prior as load_prior,
)
from .bundle_models import (
    network_to_train as network_to_train,
)
from .bundle_models import (
    start_controlnet as start_controlnet,
)
from .bundle_models import (
    uncertainties as uncertainties,
)
from .latents import (
    LatentDataset as LatentDataset,
)
from .latents import (
    LatentLoader as LatentLoader,
)
from .latents import (
    latent_diffusion_of as latent_diffusion_of,
)
from .layout_supervision import (
    Layout as Layout,
)
from .layout_supervision import (
    LayoutSupervision as LayoutSupervision,
)
from .layout_supervision import (
    discriminator_for as discriminator_for,
)
from .recipes import (
    autoencoder_evaluator as autoencoder_evaluator,
)
from .recipes import (
    autoencoder_loss as autoencoder_loss,
)
from .recipes import (
    autoencoder_trainer as autoencoder_trainer,
)
from .recipes import (
    diffusion_evaluator as diffusion_evaluator,
)
from .recipes import (
    diffusion_trainer as diffusion_trainer,
)
from .task import ControlNetTask as ControlNetTask
from .task import DiffusionTask as DiffusionTask
from .task import task_latents as task_latents
from .text import (
    ClipTextEncoder as ClipTextEncoder,
)
from .text import (
    PromptEmbeddings as PromptEmbeddings,
)
from .text import (
    PromptTemplate as PromptTemplate,
)
from .text import (
    Text as Text,
)
from .training import (
    Adversary as Adversary,
)
from .training import (
    ControlNetInferer as ControlNetInferer,
)
from .training import (
    LatentPrepareBatch as LatentPrepareBatch,
)
from .training import (
    NoisePredictionInferer as NoisePredictionInferer,
)
from .word_vectors import WordVectors as WordVectors
