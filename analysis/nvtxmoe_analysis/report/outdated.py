"""Mark a report whose tables were written again after it."""

from __future__ import annotations

from pathlib import Path

from nvtxmoe_analysis.core.files import cannot_write, whole_file
from nvtxmoe_analysis.report.result import page_of

#: Inserted at the top of the page. The style is its own: an older version's page has no class for it.
NOTICE = (
    b'<p class="outdated" role="alert" style="margin:0;padding:10px 24px;background:#fff2cc;color:#1d2430">This report '
    b"is older than the result files beside it: they were written again after it. Run <code>nvtxmoe report DIR</code> "
    b"to write it again.</p>"
)
_BODY = b"<body>"


def mark_outdated(results: Path) -> bool:
    """Insert ``NOTICE`` at the top of the page of a results folder.

    Parameters:
        results: the folder of the result files, which were just written.

    Returns:
        True if the page has the notice now; False if there is no page of ours.

    Raises:
        NvtxmoeError: the page cannot be written.
    """
    page = page_of(results)
    if not page.is_file():
        return False
    try:
        content = page.read_bytes()  # not text: the hashes of the page's scripts hold for its very bytes
        if _BODY not in content:
            return False
        if NOTICE not in content:
            with whole_file(page) as file:
                file.write_bytes(content.replace(_BODY, _BODY + NOTICE, 1))
    except OSError as error:
        raise cannot_write(error, page, "the notice that it is outdated", "Remove it, or make it writable") from error
    return True
