"""Datasets, in four rooms.

``dataset`` is the format on disk and its safe decoding; ``sources`` make one (importers, and the
starter data, made from real sources); ``contract`` holds one against what training needs;
``loading`` makes batches of tokens of it. Nothing is imported here, so that a command line that
only names this package stays fast.
"""
