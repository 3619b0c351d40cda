"""Merge an adapter into its base, and check the files and servers that serve the result."""
