"""Weights that come from other people's code, and go back to it.

``source`` opens what somebody published, ``names`` is the one table of the authors' names,
``report`` says what became of every key, ``folder`` writes, and the rest are the things that can be
taken in: an encoder, a language model, a whole system, a projector (which can also be given out).
"""
