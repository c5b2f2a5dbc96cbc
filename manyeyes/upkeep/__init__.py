"""Looking after the disk: who holds what (``du``), and what may go (``gc``).

An object of the content store stays while somebody holds it (``holders``): a folder with results,
any commit that a branch, a tag or a stash of a git project leads to, a version in a registry that
was ever written to, a dataset with a name, a run that is going on or can be continued. Who is asked
and does not answer stops the collection: silence is not consent.

Reading order: ``inventory`` (what the store has), ``gitrefs``, ``registries``, ``holders``,
``leftovers`` (what killed and old runs left elsewhere), ``collect``.
"""
