"""What every process stands on: state directory, disk, locks, ranks, progress, journal.

Nothing here knows a stage, a model or a dataset.
"""
