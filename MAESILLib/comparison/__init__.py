"""MAESIL compared with AE, VAE and VQ-VAE: the same data, samples and optimiser budget for each."""
