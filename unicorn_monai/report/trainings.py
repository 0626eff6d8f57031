"""Names of the trainings that an experiment compares."""

from __future__ import annotations

STYLE_TRANSFER = ("cyclegan", "cut")
GEOMETRY = "augmentation+geometry"  # of images and label maps, as the synthesis changes label maps
AUGMENTED = {"augmentation": "strong", GEOMETRY: "strong+geometry"}  # and what trainings call it
SELF_TRAINED = {  # first teacher, and how its pupils are trained
    "self_training": ("lower_bound", "none"),
    "self_training+geometry": (GEOMETRY, AUGMENTED[GEOMETRY]),
}
BENT = (GEOMETRY, *(name for name, (teacher, _) in SELF_TRAINED.items() if teacher == GEOMETRY))  # OCT only
BASELINES = (*AUGMENTED, *SELF_TRAINED, *STYLE_TRANSFER)
SEMANTIC_ONLY = "semantic_only"  # the paper's comparison on street scenes: the Semantic-ControlNet without the other
SYNTHETIC = (*STYLE_TRANSFER, SEMANTIC_ONLY)  # baselines that write a data set, once the method itself is trained
