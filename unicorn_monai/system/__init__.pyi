from .console import log_to_console as log_to_console
from .cuda_graphs import CudaGraphs as CudaGraphs
from .distributed import (
    RankSeeds as RankSeeds,
)
from .distributed import (
    SharedOrder as SharedOrder,
)
from .distributed import (
    local_device as local_device,
)
from .distributed import (
    parallel as parallel,
)
from .distributed import (
    start as start,
)
from .distributed import (
    stop as stop,
)
from .ending import end_in_one_sentence as end_in_one_sentence
from .files import read_json as read_json
from .files import write_text as write_text
from .intake import finite as finite
from .memory import keep_freed_memory as keep_freed_memory
from .networks import compiled as compiled
from .networks import freeze as freeze
from .networks import require_finite as require_finite
from .networks import to_train as to_train
from .records import read_record as read_record
from .terminal import PrintableFormatter as PrintableFormatter
from .weights import save_weights as save_weights
