"""Networks: one class per table of a paper."""
