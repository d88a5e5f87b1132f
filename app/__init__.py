"""The ember program: command line, engine and chat."""

__version__ = "0.1.0"
