"""One file per algorithm: its networks, its parameter groups, and its step as the paper prints it."""
