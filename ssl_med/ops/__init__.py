"""Tensor functions free of dimension and of state."""
