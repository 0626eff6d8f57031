"""Is the synthetic data any good? Segmentation scores, control of the uncertainty, the report."""
