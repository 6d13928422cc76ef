"""The API without the API: FastAPI routes that answer with JSON that lies ready.

    python -m benchmarks.api.bare ANSWERS.json PORT

`ANSWERS.json` maps each path to the document that its route returns. Served as `python -m api` is. Four routes a
document:

    GET  /<name>          returns the document, as most routes of FastAPI do
    GET  /<name>/bytes    returns a response of its bytes, made beforehand: what no route of FastAPI is faster than
    GET  /<name>/304      returns an empty 304 with an ETag
    POST /<name>          reads a JSON object and returns the document with 201
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Response

from api.http.server import server_config
from store.settings import Settings


def make_app(answers: dict[str, Any]) -> FastAPI:
    app = FastAPI(openapi_url=None)
    for name, document in answers.items():
        _add(app, name, document)
    return app


def _add(app: FastAPI, name: str, document: Any) -> None:
    body = json.dumps(document, separators=(",", ":")).encode()

    @app.get(f"/{name}")
    async def get() -> dict[str, Any]:
        return document

    @app.get(f"/{name}/bytes")
    async def get_bytes() -> Response:
        return Response(body, media_type="application/json")

    @app.get(f"/{name}/304")
    async def get_304() -> Response:
        return Response(status_code=304, headers={"ETag": '"1"', "Cache-Control": "private, no-cache"})

    @app.post(f"/{name}", status_code=201)
    async def post(given: dict[str, Any]) -> dict[str, Any]:
        return document


if __name__ == "__main__":
    answers = json.loads(Path(sys.argv[1]).read_text())
    settings = Settings(port=int(sys.argv[2]))
    uvicorn.Server(server_config(make_app(answers), settings)).run()
