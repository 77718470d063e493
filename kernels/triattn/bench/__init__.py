"""Measurements inside an engine's process; `triattn bench` runs them."""
