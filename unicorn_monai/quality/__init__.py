"""Is what a stage made good enough for the next one? Measures that need no label of the unlabelled device."""
