"""Accuracy: questions with known answers are asked and graded, and the share of right ones joins the verdict."""
