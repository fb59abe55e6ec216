"""Residual streams turned by an orthogonal matrix: exact, folded into the weights."""
