"""Training: one engine for every stage of every system; it knows steps, not models."""
