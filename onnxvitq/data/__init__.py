"""What is fed to the model: images, arrays and iterables, the preprocessing that makes them fit, and labels."""
