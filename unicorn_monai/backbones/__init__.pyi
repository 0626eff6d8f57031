from .legacy import import_weights as import_weights
from .stable_diffusion import (
    export_diffusers as export_diffusers,
)
from .stable_diffusion import (
    latent_shape as latent_shape,
)
from .stable_diffusion import (
    load_autoencoder as load_autoencoder,
)
from .stable_diffusion import (
    load_controlnet as load_controlnet,
)
from .stable_diffusion import (
    load_unet as load_unet,
)
from .stable_diffusion import (
    new_controlnet as new_controlnet,
)
from .stable_diffusion import (
    sampler as sampler,
)
from .stable_diffusion import (
    scale_factor as scale_factor,
)
from .stable_diffusion import (
    stored_autoencoder as stored_autoencoder,
)
from .stable_diffusion import (
    train_scheduler as train_scheduler,
)
from .stable_diffusion import (
    weights_metadata as weights_metadata,
)
