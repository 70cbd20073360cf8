"""The version of hskstore."""

__version__ = "0.1.0"
