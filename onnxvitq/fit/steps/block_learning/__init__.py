"""Blocks learned by gradients (Paper B); the only room of the fit that loads torch."""
