"""Decisions: from an estimate to a verdict, and from two rates to a regression. Pure arithmetic."""
