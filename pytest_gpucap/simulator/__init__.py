"""A server like vLLM with a known capacity: in virtual time and over HTTP. Everything it yields says SIMULATED."""
