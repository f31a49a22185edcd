"""The page at ``/`` and its files, which are read once."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_router() -> APIRouter:
    """Routes for exactly the files in the folder of the page."""
    files = {path.name: path.read_bytes() for path in FOLDER.glob("*") if path.suffix in TYPES}
    router = APIRouter(include_in_schema=False)

    async def serve(name: str = "index.html") -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=TYPES[Path(name).suffix])

    router.add_api_route("/static/{name}", serve)
    router.add_api_route("/", serve)
    return router
