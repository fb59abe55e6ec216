"""Reconstruction of blocks by gradients (AIQViT): the only user of torch beside ``export``, loaded when asked for."""
