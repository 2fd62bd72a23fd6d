"""llamita: the whole life of a small language model in one tool."""

__version__ = "0.1.0"
