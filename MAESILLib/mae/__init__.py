"""The superpatch masked autoencoder: blocks, network, completion."""
