"""Training priors on a folder of pictures."""
