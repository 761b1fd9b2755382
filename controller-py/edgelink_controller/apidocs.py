"""`/docs`: Swagger UI over the API's description, from this machine alone.

The files of Swagger UI come with the package fastapi-offline. The page is ours, because FastAPI's has its script
inside, which the content security policy would have to allow.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Response

PATH = "/docs"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Relative addresses throughout: a proxy may have the controller below a prefix.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>EdgeLink controller</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# validatorUrl: without null the page would ask an outside service whether the description is good.
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}


def install_docs(app: FastAPI) -> None:
    @app.get(PATH, include_in_schema=False)
    async def page() -> Response:
        return Response(PAGE, media_type="text/html", headers=HEADERS)

    @app.get(PATH + "/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(START, media_type="text/javascript", headers=HEADERS)

    @app.get(PATH + "/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        if name not in ASSETS:
            return Response(status_code=404)
        content = (files("fastapi_offline") / "static" / name).read_bytes()
        headers = {**HEADERS, "Cache-Control": "public, max-age=3600"}
        return Response(content, media_type=ASSETS[name], headers=headers)
