"""What the Hugging Face hub says when it gives no file, as one line."""

from __future__ import annotations

import re

_BARE = re.compile(r"\(Request ID:[^)]*\)|^\d{3} (Client|Server) Error[.:]?( \(?for url:? \S+)?|^HTTPError:")


def hub_reason(error: BaseException) -> str:
    r"""Return all of the hub's first paragraph, without the bare status and the request's id.

    Gated, private and missing repositories answer with the same status: the paragraph alone tells them apart.

    Examples:
        >>> hub_reason(OSError("401 Client Error. (Request ID: Root=1-2;3)\n\nCannot access gated repo\nfor url x."))
        'Cannot access gated repo for url x.'
    """
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", str(error)) if part.strip()]
    told = [text for part in paragraphs if (text := _BARE.sub("", _BARE.sub("", part).strip()).strip(" .:"))]
    return f"{told[0]}." if told else type(error).__name__
