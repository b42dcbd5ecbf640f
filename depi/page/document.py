"""One file that holds a whole page: its data, style, script, pictures and films. It needs no network."""

import base64
import hashlib
import html
import json
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from depi.errors import UserError
from depi.files import write_text

_HERE = "depi.page"


def render(
    data: dict[str, Any],
    *,
    package: str,
    name: str,
    scripts: Sequence[str],
    title: str,
    about: str,
    skip_to: str | None = None,
    may_save: bool = False,
) -> str:
    """Return the page `page/NAME.html` of a package with its `page/NAME.css` and scripts.

    Untrusted text is in it only as JSON without `<`, `>` and `&`, and comes into the document as
    text; the page's Content-Security-Policy allows no other script than its own.

    Args:
        data: JSON values, which the script finds in `DATA`.
        package: the package that has a folder `page`.
        name: of the HTML (what stands in the body below the heading) and of the CSS, without suffix.
        scripts: files of that folder, run in order after `elements.js` and `chart.js`.
        title: the heading, any text.
        about: what the page is of, above the heading, such as `catalogue`.
        skip_to: the id of the part to which a link before the heading leads, which has its name.
        may_save: let the script send requests to the server that the page came from.
    """
    style = _part(_HERE, "page.css") + _part(f"{package}.page", f"{name}.css")
    script = "\n".join(
        [
            *(_part(_HERE, script) for script in ("elements.js", "chart.js")),
            *(_part(f"{package}.page", script) for script in scripts),
        ]
    )
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        f"connect-src {"'self'" if may_save else "'none'"}; base-uri 'none'; form-action 'none'"
    )
    skip = f'<a class="skip" href="#{skip_to}">Skip to the {skip_to}</a>\n' if skip_to else ""
    return string.Template(_part(_HERE, "page.html")).substitute(
        title=html.escape(title),
        about=about,
        skip=skip,
        policy=policy,
        style=style,
        body=_part(f"{package}.page", f"{name}.html"),
        data=_embed(data),
        script=script,
    )


def write(path: Path, page: str, content: str) -> None:
    """Write a page, and print where it is, its `content` and its size.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_text(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    print(f"written to {path}: {content}, {len(page) / 1e6:.1f} MB")


def _part(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embed(value: Any) -> str:
    """JSON that may stand in a script element: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
