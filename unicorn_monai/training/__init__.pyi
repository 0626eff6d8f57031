from .batches import check_batches as check_batches
from .budget import TimeBudget as TimeBudget
from .handlers import Progress as Progress
from .handlers import SampleImages as SampleImages
from .handlers import shared as shared
from .kept_weights import EMA as EMA
from .kept_weights import BestWeights as BestWeights
from .settings import (
    AutoencoderSettings as AutoencoderSettings,
)
from .settings import (
    DiffusionSettings as DiffusionSettings,
)
from .settings import (
    TranslationSettings as TranslationSettings,
)
from .state import TrainingState as TrainingState
from .steps import WarmupCosine as WarmupCosine
from .steps import autocast_settings as autocast_settings
from .steps import random_order as random_order
