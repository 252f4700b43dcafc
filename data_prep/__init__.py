"""From a data set's original files to shards: one file per data set."""
