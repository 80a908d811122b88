"""Results on disk and what they say together: baselines, comparisons, trends."""
