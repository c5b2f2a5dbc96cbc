"""The model, one file per stop of a tensor's path, in alphabetical order.

encoders -> fusion -> projector -> splice -> transformer (the language model) -> vlm (all of it).
``processor`` makes the inputs, ``weights`` is where they come from. Importing this package,
or ``encoders.registry``, does not import torch.
"""
