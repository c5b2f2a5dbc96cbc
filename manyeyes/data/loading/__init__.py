"""From a dataset to batches: templates, tokens and labels, batches, packs, worker processes."""
