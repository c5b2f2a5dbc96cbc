"""The version of the package; every manifest names it."""

__version__ = "0.1.0"
