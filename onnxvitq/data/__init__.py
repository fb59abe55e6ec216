"""The model's inputs: images, arrays and iterables, the preprocessing that makes them fit, and labels."""
