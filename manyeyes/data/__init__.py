"""Datasets: one format on disk, safe decoding, and the starter data made from real sources.

Nothing is imported here, so that a command line that only names this package stays fast.
"""
