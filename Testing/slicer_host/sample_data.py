"""The SampleData module: collects what modules register, refuses what the real one would, and loads local files."""

import hashlib
import re
import tempfile
import types
import urllib.request
from pathlib import Path
from typing import Any

from . import state

registered: list[dict[str, Any]] = []


class SampleDataLogic:
    """Registering and loading sample data."""

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: str | None = None,
        checksums: Any = None,
    ) -> None:
        entry = {name: value for name, value in locals().items() if value is not None}
        for value in (sampleName, uris, fileNames, nodeNames, checksums):
            # the real one takes lists too, and sources without a checksum; the module has one file
            if not isinstance(value, str):
                raise TypeError(f"sample data {sampleName!r} needs uris, fileNames, nodeNames and checksums: {entry}")
        if not re.fullmatch(r"SHA256:[0-9a-f]{64}", checksums):
            raise ValueError(f"checksum {checksums!r}")
        if thumbnailFileName is not None:
            with open(thumbnailFileName, "rb"):
                pass
        if entry not in registered:
            registered.append(entry)

    def downloadSample(self, sampleName: str) -> Any:
        """Return the node of a sample of one file, of this machine; as in Slicer, its own downloader is not asked."""
        import slicer

        (source,) = [entry for entry in registered if entry["sampleName"] == sampleName]
        if not source["uris"].startswith("file:"):
            state.complain(f"the host downloads nothing ({sampleName})")
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, source["fileNames"])
            urllib.request.urlretrieve(source["uris"], path)
            if source["checksums"] != f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}":
                state.complain(f"sample data {sampleName!r}: another checksum")
            if source.get("loadFileTypes") != "VolumeFile":
                state.complain(f"sample data {sampleName!r}: Slicer may read {path.suffix} as a transform")
            node = slicer.util.loadVolume(str(path), {"name": source["nodeNames"]})
        slicer.mrmlScene.RemoveNode(node.GetStorageNode())
        return node


def make() -> types.ModuleType:
    module = types.ModuleType("SampleData")
    module.SampleDataLogic = SampleDataLogic
    return module
