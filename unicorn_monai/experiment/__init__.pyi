from .experiment import Experiment as Experiment
from .plan import CONTROLNETS as CONTROLNETS
from .runner import Runner as Runner
from .settings import (
    Settings as Settings,
)
from .settings import (
    bundle_places as bundle_places,
)
from .settings import (
    settings_begun_with as settings_begun_with,
)
from .settings import (
    settings_of as settings_of,
)
from .stages import Stage as Stage
from .stages import needed as needed
from .versions import provenance as provenance
