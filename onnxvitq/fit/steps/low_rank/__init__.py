"""Branches of low rank beside the linear layers (Paper B), in closed form."""
