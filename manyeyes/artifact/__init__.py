"""Artifacts: a directory that is finished when its manifest is written, last, by atomic rename.

``manifest`` is the format, ``destination`` says where one may be written, ``marker`` names what is
still unfinished, ``verified`` checks files once and remembers it, ``provenance`` is what made it.
"""
