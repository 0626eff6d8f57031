from .comparison import SubDomainWriter as SubDomainWriter
from .copies import Audited as Audited
from .copies import Material as Material
from .copies import audit as audit
from .copies import gather as gather
from .distribution import FeatureSet as FeatureSet
from .distribution import distances as distances
from .distribution import fid as fid
from .features import Features as Features
from .features import train_encoder as train_encoder
from .scoring import (
    Counts as Counts,
)
from .scoring import (
    PooledIoU as PooledIoU,
)
from .scoring import (
    count as count,
)
from .scoring import (
    score_images as score_images,
)
from .scoring import (
    scored_items as scored_items,
)
from .scoring import (
    summarise as summarise,
)
