"""MAESIL beside an AE, a VAE and a VQ-VAE: the same data, samples and optimiser budget for each."""
