"""MAESILLib: superpatch masked autoencoders for CT.

The library is independent of 3D Slicer. Importing it is cheap: torch and SimpleITK are imported
by the modules that need them, never by the package itself.
"""

__version__ = "0.1.0"
