"""The version of the installed distribution, as pyproject.toml gives it."""

from importlib import metadata

try:
    __version__ = metadata.version("decodesim")
except metadata.PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.1.0+checkout"
