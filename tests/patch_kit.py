"""Patches modules of a process that a test starts, from the ``sitecustomize.py`` of that process."""

import importlib.abc
import importlib.util
import sys


class AfterImport(importlib.abc.MetaPathFinder):
    """Patches a module right after it was really imported."""

    def __init__(self, patches):
        """Take functions by the name of the module that each of them patches."""
        self.patches = patches

    def find_spec(self, name, path=None, target=None):
        if name not in self.patches:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            self.patches[name](module)

        spec.loader.exec_module = exec_module
        return spec
