"""Planning: from the rate of one replica to a fleet, with its GPUs, memory and cost by GPU class."""
