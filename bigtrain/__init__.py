"""bigtrain: one recipe from raw text to an exported model, exact on any engine and any number of ranks."""

__version__ = "0.1.0"
