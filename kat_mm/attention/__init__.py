"""Attention over the tokens of a map, and its windows. Takes torch alone."""
