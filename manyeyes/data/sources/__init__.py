"""Where datasets come from: LLaVA-format files of somebody's own, and the starter data."""
