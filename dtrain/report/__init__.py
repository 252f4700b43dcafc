"""A run or a sweep as one HTML file that opens from disk, without network."""
