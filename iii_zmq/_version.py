"""The version: read by setup.cfg without importing the package, and shown by `--version`."""

__version__ = "0.1.0"
