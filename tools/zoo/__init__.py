"""Pretraining of the tiny parts that ship with the library (``manyeyes.model.weights.zoo``).

``make zoo`` or ``python -m tools.zoo`` makes them again.
"""
