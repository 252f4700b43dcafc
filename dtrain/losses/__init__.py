"""The papers' losses as pure functions: tensors in, tensors out."""
