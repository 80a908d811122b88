"""Capacity: pure arithmetic and statistics on finished samples. Imports neither pytest nor a network library."""
