"""Load: what is sent when, who sends it, and what came back. Knows nothing of GPUs or of pytest."""
