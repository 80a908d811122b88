"""Results of other load generators, read as points: a load, and what came of it."""
