"""Calibration: statistics of a model's pre-rotary queries, measured on text (`python -m
triattn.calibrate`)."""
