"""Estimate: from samples to the engine's step times, the queue on top, and latencies at any rate. Pure arithmetic."""
