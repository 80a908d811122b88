"""Telemetry: what devices, server and processes did, what held the server back, and whether all ran as they should."""
