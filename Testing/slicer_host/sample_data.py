"""The SampleData module: collects what modules register, refuses what the real one would, and loads local files."""

from __future__ import annotations

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
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileType: Any = None,
        loadFiles: Any = None,
        loadFileProperties: dict[str, Any] | None = None,
        checksums: Any = None,
    ) -> None:
        entry = {name: value for name, value in locals().items() if value is not None}
        if uris is None or fileNames is None or nodeNames is None:
            # the real one pairs them up, also for a source with a downloader of its own
            raise TypeError(f"sample data {sampleName!r} needs uris, fileNames and nodeNames")
        lists = [entry[key] for key in ("uris", "fileNames", "nodeNames", "checksums") if key in entry]
        lengths = {1 if isinstance(value, str) else len(value) for value in lists}
        if not sampleName or len(lengths) > 1 or (customDownloader is None and uris is None):
            raise ValueError(f"sample data {sampleName!r}: {entry}")
        for checksum in [checksums] if isinstance(checksums, str) else checksums or []:
            if checksum and not re.fullmatch(r"SHA256:[0-9a-f]{64}|MD5:[0-9a-f]{32}|SHA512:[0-9a-f]{128}", checksum):
                raise ValueError(f"checksum {checksum!r}")
        if thumbnailFileName is not None:
            with open(thumbnailFileName, "rb"):
                pass
        if entry not in registered:
            registered.append(entry)

    def sourceForSampleName(self, sampleName: str) -> Any:
        found = [entry for entry in registered if entry["sampleName"] == sampleName]
        return types.SimpleNamespace(**found[0]) if found else None

    def downloadSample(self, sampleName: str) -> Any:
        """Return the node of a sample of one file, of this machine; as in Slicer, its own downloader is not asked."""
        import slicer

        source = self.sourceForSampleName(sampleName)
        if not source.uris.startswith("file:"):
            state.complain(f"the host downloads nothing ({sampleName})")
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, source.fileNames)
            urllib.request.urlretrieve(source.uris, path)
            if source.checksums != f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}":
                state.complain(f"sample data {sampleName!r}: another checksum")
            node = slicer.util.loadVolume(str(path), {"name": source.nodeNames})
        slicer.mrmlScene.RemoveNode(node.GetStorageNode())
        return node


def downloadSample(sampleName: str) -> Any:
    return SampleDataLogic().downloadSample(sampleName)


def make() -> types.ModuleType:
    module = types.ModuleType("SampleData")
    module.SampleDataLogic = SampleDataLogic
    module.downloadSample = downloadSample
    return module
