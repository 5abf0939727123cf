"""What the module is, and the method's words in one line each; docs/Glossary.md has more."""

from __future__ import annotations

from slicer.i18n import tr as _

DOCUMENTATION = "https://github.com/MAESIL/SlicerMAESIL/blob/main/docs"
HELP = _(
    "Hides part of a CT, lets a superpatch masked autoencoder reconstruct it, and shows masked input, "
    "reconstruction and error map in three anatomical views. Trains such models as well. "
    "For research; not for clinical use."
) + _(
    '<p>See the <a href="{docs}/Slicer.md">documentation</a> and the <a href="{docs}/Glossary.md">glossary</a>.'
).format(docs=DOCUMENTATION)
ACKNOWLEDGEMENT = _(
    'An implementation of the method of <a href="{paper}">Kim et al., MAESIL, arXiv:2604.00514 (2026)</a>, '
    "whose authors published no code. To cite it: CITATION.cff."
).format(paper="https://arxiv.org/abs/2604.00514")
WORDS = {
    "biharmonic": _(
        "Fill of the hidden voxels by a thin plate through the visible ones; the network adds its lead over this."
    ),
    "harmonic": _(
        "Fill of the hidden voxels by the smoothest blend of the visible ones around them; a model should exceed this."
    ),
    "border index": _("How much steps at patch borders stand out: 1 is as in the input, above 1 a grid is visible."),
    "psnr": _("Peak signal-to-noise ratio over the window: 6 dB more is half the error."),
    "mae": _("Mean absolute error in Hounsfield units."),
    "ssim": _("Structural similarity: 1 is identical."),
    "hidden": _("Share of the patches that the model did not see."),
}
"""By a part of a metric's title, the first that fits."""


def explain(title: str) -> str:
    """Return what a metric's title means; empty where it needs no words."""
    return next((text for word, text in WORDS.items() if word in title.lower()), "")
