"""dtrain: distributed training of generative autoencoders and optimal transport models."""
