"""Telemetry: what devices, server and processes did, what the bottleneck was, and whether the devices were healthy."""
