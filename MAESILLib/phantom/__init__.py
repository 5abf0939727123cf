"""The sample of ``maesil demo``: a body phantom in HU, generated from a seed."""

from MAESILLib.phantom.body import body_phantom, landmarks, phantom_volume

__all__ = ["body_phantom", "landmarks", "phantom_volume"]
