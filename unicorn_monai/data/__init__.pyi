from .augmented import write_augmented as write_augmented
from .checks import check as check
from .checks import problems as problems
from .items import (
    datalist as datalist,
)
from .items import (
    folders_of as folders_of,
)
from .items import (
    image_size as image_size,
)
from .items import (
    images_only as images_only,
)
from .items import (
    num_labels as num_labels,
)
from .items import (
    read_array as read_array,
)
from .layout import label_names as label_names
from .layout import read_header as read_header
from .writer import DatasetWriter as DatasetWriter
from .writer import write_array as write_array
