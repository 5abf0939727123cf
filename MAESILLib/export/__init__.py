"""Export: the pretrained encoder for downstream work, as a plain module and as MONAI's ViT and UNETR."""
