"""Features of a CT from the frozen encoder: one vector for each 8 x 8 x 8 voxels of its 1.5 mm grid.

    python examples/features.py CT FEATURES.npy [CHECKPOINT]

CT is a file or a DICOM folder; without CHECKPOINT the embedded one is used. FEATURES.npy holds float16
(width, D/8, H/8, W/8): D towards superior, H towards posterior, W towards left.
"""

import sys
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.volume import model_grid
from MAESILLib.export.encoder import load_encoder
from MAESILLib.runtime.resources import embedded_checkpoint

source, output = sys.argv[1:3]
encoder = load_encoder(sys.argv[3] if len(sys.argv) > 3 else embedded_checkpoint())

volume = read_volume(source)
grid = model_grid(volume.geometry, encoder.spacing_mm)
image = encoder.intensities(grid.to_model(volume.hu))[None]
d, h, w = (-n % p for n, p in zip(image.shape[2:], encoder.patch_size, strict=True))
image = F.pad(image, (0, w, 0, h, 0, d), mode="replicate")

# windows as large as those that the encoder was trained on; the last of an axis ends where the image does
sides = [min(n, s) for n, s in zip(image.shape[2:], encoder.trained_size, strict=True)]
starts = [sorted({*range(0, n - s, s), n - s}) for n, s in zip(image.shape[2:], sides, strict=True)]
features = torch.empty(encoder.width, *(n // p for n, p in zip(image.shape[2:], encoder.patch_size, strict=True)))
for corner in product(*starts):
    window = tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))
    tokens = tuple(slice(s.start // p, s.stop // p) for s, p in zip(window, encoder.patch_size, strict=True))
    with torch.inference_mode():
        features[:, *tokens] = encoder.feature_maps(image[:, :, *window])[-1][0]
np.save(output, features.half().numpy())
print(f"{output}: {encoder.width} features of {' x '.join(map(str, features.shape[1:]))} tokens")
