"""Softmaxes that are divided after the product with V."""
