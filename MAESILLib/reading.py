"""Where scripts and pages outside import reading from: it is in :mod:`MAESILLib.ct.reading`."""

from MAESILLib.ct.reading import read_volume as read_volume
