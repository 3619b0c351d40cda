"""Adapter and base -> a checkpoint."""
