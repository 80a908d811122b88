"""Markers: what each test declares with them. They are read at collection, so a mistake costs no GPU time."""
