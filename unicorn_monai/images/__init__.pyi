from .augmentation import training_augmentation as training_augmentation
from .files import read_array as read_array
from .files import write_array as write_array
from .transforms import (
    FileAxesd as FileAxesd,
)
from .transforms import (
    LabelMapd as LabelMapd,
)
from .transforms import (
    LoadPixelsd as LoadPixelsd,
)
from .transforms import (
    collate as collate,
)
from .transforms import (
    one_hot as one_hot,
)
from .transforms import (
    read_image as read_image,
)
