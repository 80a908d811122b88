"""Workloads that come as data: presets of the ``gpucap`` marker, and questions whose answers are known."""
