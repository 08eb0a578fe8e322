"""The page's files. One that is stored as ``NAME.gz`` is served as ``NAME``, still packed."""

from __future__ import annotations

import gzip
import mimetypes
import stat
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"
# What the system thinks of these differs from machine to machine, and browsers insist.
MEDIA_TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
    ".webmanifest": "application/manifest+json",
}
for _suffix, _media_type in MEDIA_TYPES.items():
    mimetypes.add_type(_media_type, _suffix)


class PageFiles(StaticFiles):
    """A folder of files, with ``index.html`` at its root; packed files unpack in the browser."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True)

    async def get_response(self, path: str, scope: Scope) -> Response:
        plain, _ = self.lookup_path(path)
        packed, found = self.lookup_path(f"{path}.gz")
        response: Response
        if plain or found is None or not stat.S_ISREG(found.st_mode) or scope["method"] == "POST":
            response = await super().get_response(path, scope)
        else:
            response = self._packed(Path(packed), path, scope)
        response.headers.setdefault("Cache-Control", "no-cache")  # kept, but asked for each time
        return response

    def _packed(self, packed: Path, name: str, scope: Scope) -> Response:
        headers = Headers(scope=scope)
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        vary = {"Vary": "Accept-Encoding"}
        if "gzip" not in headers.get("accept-encoding", ""):
            return Response(gzip.decompress(packed.read_bytes()), 200, vary, media_type)
        encoded = {**vary, "Content-Encoding": "gzip"}
        return FileResponse(packed, 200, encoded, media_type, stat_result=packed.stat())
