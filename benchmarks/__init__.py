"""Side-by-side measurements; each prints what it measured."""
