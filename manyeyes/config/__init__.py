"""What users write: the recipe (what is trained) and the cluster profile (where). No torch."""
