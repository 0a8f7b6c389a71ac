"""Calibration: data in, statistics of a model's values out."""
