"""Roofline: what bandwidth and compute of a GPU allow a model at most, and whether a measurement can be true."""
