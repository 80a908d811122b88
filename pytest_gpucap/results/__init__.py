"""Results: the types for what a measurement found, and the result file."""
