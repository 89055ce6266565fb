"""What is kept on disk: fits, arrays, results, the cache."""
