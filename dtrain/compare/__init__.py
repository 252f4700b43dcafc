"""Runs side by side: one table, and one picture."""
