"""The model registry: models by reference, aliases, and the gate in front of ``champion``.

Reading order: ``scores`` (one model's), ``gate`` (when a candidate may become champion),
``versions`` and ``reference`` (what stands in MLflow), ``registry`` (register, promote),
``catalogue`` (what ``models`` and ``lineage`` list), ``weights`` (the bytes of a version),
``known`` (every registry ever written to). MLflow is imported inside functions only, because it
costs seconds.
"""
