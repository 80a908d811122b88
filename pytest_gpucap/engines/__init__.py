"""Servers: their processes, vLLM, endpoints that already run, and synthetic models."""
