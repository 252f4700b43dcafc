"""Shards on disk to batches on the device: one order, several loaders, the same samples bit for bit."""
