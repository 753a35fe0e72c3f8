"""Lowerings: how one forward file serves the whole operator."""
