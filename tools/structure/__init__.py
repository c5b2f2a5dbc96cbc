"""Measures of the structure of the source, of one checkout or several beside each other."""
