"""One short script per source of images; each writes the data set format that `unicorn_monai.datasets` reads."""
