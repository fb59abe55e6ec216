"""Bits under a budget, and the promise on decisions."""
