"""Answers of a model: generated, measured, and asked for in a terminal."""
