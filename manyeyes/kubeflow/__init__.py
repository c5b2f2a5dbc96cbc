"""The pipeline for Kubeflow Pipelines.

``components`` (a typed signature and one call each) and ``pipelines`` (the graph, compile, submit,
kfp.local) lie at the top of the repository, where their readers look for them. They are linked
here, so that nothing is installed under a generic name. Nothing is imported here.
"""
