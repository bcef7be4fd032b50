"""The version of the installed package (its one source is pyproject.toml)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ringdp")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
