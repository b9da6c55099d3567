"""What ``msl serve`` answers, as an OpenAPI description; ``serve_api.html`` shows it as a page."""

from __future__ import annotations

from typing import Any

from msltrain.runs.folder import package_version

_IMAGE = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
_NUMBERS = {"type": "array", "items": {"type": "number"}}


_ANSWERS = {
    "type": "array",
    "description": "one for each model, in the order of /api/models",
    "items": {
        "type": "object",
        "properties": {
            "scores": {**_NUMBERS, "description": "0 to 1, in the order of the model's classes"},
            "places": {
                "type": "object",
                "description": "where each class is seen: base64 of a uint8 array (class, row, column), 255 = score 1",
                "properties": {
                    "rows": {"type": "integer"},
                    "columns": {"type": "integer"},
                    "bytes": {"type": "string", "format": "byte"},
                },
            },
        },
    },
}
_PHOTO = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "names the photograph while it is among the last 32"},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "answers": _ANSWERS,
    },
}
_BEHIND = {
    "type": "object",
    "properties": {
        "hidden": {"type": "number", "description": "share of the photograph that the mask hides, 0 to 1"},
        "answers": _ANSWERS,
    },
}
_NAMES = {"type": "array", "items": {"type": "string"}}
_MODEL = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "path": {"type": "string"},
        "classes": _NAMES,
        "thresholds": {**_NUMBERS, "description": "a class counts as predicted from this score on"},
        "threshold_origin": {"type": "string"},
        "hole_colour": {**_NUMBERS, "description": "RGB of what the network sees in a hole, 0 to 255"},
    },
}
_ABOUT = {
    "type": "object",
    "properties": {
        "models": {"type": "array", "items": _MODEL},
        "classes": {**_NAMES, "description": "those that any of them knows"},
        "examples": _NAMES,
        "ramp": {"type": "array", "items": _NUMBERS, "description": "RGB of the scores from 0 to 1 in pictures"},
        "strongest": {"type": "number", "description": "opacity of score 1"},
    },
}


def _operation(summary: str, answer: dict[str, Any], body: str = "", parameter: str = "") -> dict[str, Any]:
    content = answer if "image/jpeg" in answer else {"application/json": {"schema": answer}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "OK", "content": content},
            "4XX": {
                "description": "refused",
                "content": {
                    "application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}
                },
            },
        },
    }
    if parameter:
        kind = "integer" if parameter == "number" else "string"
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": kind}}]
    if body:
        binary = {"schema": {"type": "string", "format": "binary"}}
        form = {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}}
        content = {"application/octet-stream": binary, "multipart/form-data": form}
        operation["requestBody"] = {"description": body, "required": True, "content": content}
    return operation


def openapi() -> dict[str, Any]:
    """The description in OpenAPI 3.1."""
    photo = "an encoded image (JPEG, PNG, WebP …), as the body itself or as the file of a form; at most 25 MiB"
    mask = "a black-and-white PNG, white = visible"
    return {
        "openapi": "3.1.0",
        "info": {"title": "msl serve", "version": package_version("msltrain") or "unknown"},
        "paths": {
            "/api/models": {"get": _operation("The models: classes, thresholds; the examples.", _ABOUT)},
            "/api/photos": {"post": _operation("What a photograph shows, by each model.", _PHOTO, photo)},
            "/api/photos/{photo}/hole": {
                "post": _operation("What each model makes of it behind a hole.", _BEHIND, mask, "photo")
            },
            "/api/photos/{photo}.jpg": {
                "get": _operation("The photograph as the network sees it, at most 1024 pixels.", _IMAGE, "", "photo")
            },
            "/api/examples/{number}": {
                "post": _operation("What an example shows, by each model.", _PHOTO, "", "number")
            },
            "/api/examples/{number}.jpg": {"get": _operation("An example, small.", _IMAGE, "", "number")},
        },
    }
