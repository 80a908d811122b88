"""A fleet as the load sees it: one schedule over several load generators, on nodes with clocks of their own."""
