"""Planning: from a rate to a fleet: GPUs, memory and cost by GPU class."""
