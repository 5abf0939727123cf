"""Export: the pretrained encoder for downstream work, as a PyTorch module and for nnU-Net's Primus."""
