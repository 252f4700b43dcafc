"""Short curves on the CPU with fixed seeds: a change that should not alter the mathematics must not alter them."""
