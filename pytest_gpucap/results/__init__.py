"""Results: what a measurement found, typed to the last report, and the file that keeps it."""
