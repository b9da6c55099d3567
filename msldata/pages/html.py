"""A page from its template. Python gathers what is shown; only templates hold markup, and they escape every value."""

from __future__ import annotations

import base64
import io
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image


def render(template: str, /, **shown: object) -> str:
    """Fill a template; a name that it uses and ``shown`` lacks is an error.

    Args:
        template: ``package/file``, as in ``msldata.pages/base.html``; templates name each other like this as well.
        shown: plain values and dataclasses. Text among them can never become markup.
    """
    return _environment().get_template(template).render(**shown)


def picture(image: Image.Image, *, longest_side: int, quality: int = 82) -> str:
    """The image as a JPEG inside a ``data:`` address, scaled down where it is larger than ``longest_side`` pixels."""
    small = image.convert("RGB")
    small.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return data_address("image/jpeg", buffer.getvalue())


def data_address(kind: str, data: bytes) -> str:
    """A file inside the page; ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _read(template: str) -> tuple[str, str, None]:
    package, _, file = template.partition("/")
    return resources.files(package).joinpath(file).read_text("utf-8"), template, None
