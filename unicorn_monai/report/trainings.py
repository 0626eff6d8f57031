"""Names of the trainings that an experiment compares."""

from __future__ import annotations

STYLE_TRANSFER = ("cyclegan", "cut")
GEOMETRY = "augmentation+geometry"  # of images and label maps, as the synthesis changes label maps
GUESSED = ("random_contrast", "synthseg")  # any contrast, drawn anew for every image
STYLED = ("svdna", "fda", "histogram")  # the look of an unlabelled image, without a training
AUGMENTED = {"augmentation": "strong", GEOMETRY: "strong+geometry"}  # and what trainings call it
AUGMENTED |= {name: name for name in (*GUESSED, *STYLED)}
ON_TOP = ("augmentation", GEOMETRY)  # are tried on top of synthetic and real images, too
SELF_TRAINED = {  # first teacher, and how its pupils are trained
    "self_training": ("lower_bound", "none"),
    "self_training+geometry": (GEOMETRY, AUGMENTED[GEOMETRY]),
}
BASELINES = (*AUGMENTED, *SELF_TRAINED, *STYLE_TRANSFER)
SEMANTIC_ONLY = "semantic_only"  # the paper's comparison on street scenes: the Semantic-ControlNet without the other
SYNTHETIC = (*STYLE_TRANSFER, SEMANTIC_ONLY)  # baselines that write a data set, once the method itself is trained
