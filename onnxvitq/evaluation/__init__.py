"""Proof: which kernels really run, how far the outputs moved, how fast it is, and the report that says so."""
