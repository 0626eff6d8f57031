"""Names of the trainings that an experiment compares.

bounds      the labelled images alone; the unlabelled ones with their true labels
free        what costs no image generator: augmentations, self-training, adapted statistics, guessed labels
generated   what writes a labelled data set: translations of images, moved latents, UnIACorN
"""

from __future__ import annotations

PLAIN = "geometry"  # the augmentation of every training that names none: what no device changes
GEOMETRY = "augmentation+geometry"  # of images and label maps, as the synthesis changes label maps
GUESSED = ("random_contrast", "synthseg")  # any contrast, drawn anew for every image
STYLED = ("svdna", "fda", "histogram")  # the look of an unlabelled image, without a training
AUGMENTED = {"augmentation": "strong", GEOMETRY: "strong+geometry"}  # and what trainings call it
AUGMENTED |= {name: name for name in (*GUESSED, *STYLED)}
STRONGEST = AUGMENTED[GEOMETRY]  # that fits every image; opponents are trained with it
ON_TOP = ("augmentation", GEOMETRY)  # are tried on top of synthetic and real images, too
SELF_TRAINED = {"self_training": PLAIN, "self_training+geometry": STRONGEST}  # and their augmentation
SELF_TRAINED_CHOSEN = "self_training+chosen"  # augmentation: that of the best network, chosen without labels
BATCH_NORM = "batch_norm"  # a network with batch normalisation, its statistics those of the unlabelled images
PSEUDO_LABELS = "pseudo_labels"  # plain training on what the best of the free networks guesses
GUESSED_ON = (*SELF_TRAINED, SELF_TRAINED_CHOSEN, PSEUDO_LABELS)  # taught by guesses on the unlabelled images
# Of which that one is chosen, without labels; the lower bound too:
FREE = (*AUGMENTED, *SELF_TRAINED, SELF_TRAINED_CHOSEN, BATCH_NORM)
CYCADA = "cycada"  # whose translations must keep what the network of the lower bound sees
STYLE_TRANSFER = ("cyclegan", "cut", CYCADA, "accut")
TSYND = "tsynd"
BASELINES = (*FREE, PSEUDO_LABELS, *STYLE_TRANSFER, TSYND)
SEMANTIC_ONLY = "semantic_only"  # the paper's comparison on street scenes: the Semantic-ControlNet without the other
COMPARED = (*BASELINES, SEMANTIC_ONLY)  # all, in this order
SYNTHETIC = (*STYLE_TRANSFER, TSYND, SEMANTIC_ONLY)  # baselines that write a data set
