"""Accuracy: questions whose answers are known, asked, graded and judged."""
