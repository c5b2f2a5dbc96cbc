"""Puts this folder on the import path, so that tests of any kind can share a kit from it."""
