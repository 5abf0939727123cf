"""The parts of the MAESIL module: one concern a file. Imported in Slicer; no torch here, ever."""
