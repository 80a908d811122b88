"""Fleets: several replicas of one server, on this machine or on others."""
