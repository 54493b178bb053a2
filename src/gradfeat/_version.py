"""The version of gradfeat, in one place."""

__version__ = "0.1.0.dev0"
