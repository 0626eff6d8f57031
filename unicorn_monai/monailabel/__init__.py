"""A MONAI Label app on a finished run: segmentation, the most uncertain B-scan next, retraining, synthesis.

    unicorn-monai label --studies DIR --run RUN          docs/monai_label.md

Needs the extra ``label``. `app_folder`, `client` and `label_files` do not import MONAI Label, the others do.
"""
