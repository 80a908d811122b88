"""Servers: their processes, vLLM, endpoints that already run, and models made on the spot."""
