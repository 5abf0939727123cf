"""A test host for Slicer's scripted modules: real MRML and rendered slice views, without the application.

    from slicer_host import boot
    host = boot()
    host.add_module_path(folder)
    host.load_module("MyModule")
    widget = host.open_module("MyModule")

It raises or collects (host.errors) where PythonQt and Slicer would fail, so that what passes here works there.
"""

from .install import prepare_environment

prepare_environment()

from .host import Host, boot  # noqa: E402

__all__ = ["Host", "boot"]
