"""GPU capacity regression tests for pytest."""
