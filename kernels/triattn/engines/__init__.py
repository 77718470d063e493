"""Hooks of the inference engines, one package an engine."""
