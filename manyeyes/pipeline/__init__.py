"""What runs a stage, whichever interface asks.

``stages`` are the plain functions; ``runner`` runs one, or takes its result from the store by its
``fingerprint`` (``outside`` digests what it reads, ``code_lock`` the code); ``worker`` is the entry
point of a KFP step, ``following`` of the other torchrun processes; ``launch`` starts a training on
a cluster; ``preflight`` tells mistakes before anything runs; ``explain`` says what will run and
why; ``finalize`` is the exit handler. Nothing is imported here.
"""
