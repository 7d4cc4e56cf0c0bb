"""Gives devices credentials at the broker, and takes them away."""
