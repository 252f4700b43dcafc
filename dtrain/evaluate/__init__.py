"""Evaluation: numbers and pictures of any algorithm, at the end of a run or at any time."""
