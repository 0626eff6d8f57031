from .chain import check_chain as check_chain
from .chain import check_labels as check_labels
from .chain import ready as ready
from .chain import trained_on as trained_on
from .image_sizes import check_sides as check_sides
from .installation import (
    bundle_root as bundle_root,
)
from .installation import (
    configured as configured,
)
from .installation import (
    install as install,
)
from .installation import (
    load_config as load_config,
)
from .installation import (
    sibling as sibling,
)
from .references import (
    arguments as arguments,
)
from .references import (
    default_device as default_device,
)
from .references import (
    definition as definition,
)
from .references import (
    from_bundle as from_bundle,
)
from .references import (
    metadata_of as metadata_of,
)
from .references import (
    weights_metadata as weights_metadata,
)
from .references import (
    weights_sha256 as weights_sha256,
)
from .references import (
    with_weights as with_weights,
)
from .root import own_root as own_root
from .run import run_bundle as run_bundle
from .settings import PRECISIONS as PRECISIONS
from .settings import check_settings as check_settings
from .verify import findings as findings
from .verify import seal as seal
