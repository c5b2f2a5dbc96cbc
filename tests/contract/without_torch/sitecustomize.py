"""Makes this Python one without the packages that the control image leaves out.

Python imports this module by itself where its folder is on PYTHONPATH, and only a test puts it
there. ``MISSING_PACKAGES`` lists the top-level packages that must not be found.
"""

import importlib.abc
import os
import sys


class _Missing(importlib.abc.MetaPathFinder):
    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"{name} is not in the control image", name=name)


sys.meta_path.insert(0, _Missing(set(os.environ["MISSING_PACKAGES"].split())))
