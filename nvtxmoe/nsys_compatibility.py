"""Which nvtx goes with which nsys: what is recorded at all, and whether binary payloads reach an export.

Pure: versions in, answers out. What was tried, and with what outcome, is in docs/reference/supported-versions.md.
"""

from __future__ import annotations

import re

BINARY, WORDS = "binary", "words"

#: From here on nvtx emits nothing that nsys 2023.4 records. Tried: 0.2.10 and 0.2.11 (all), 0.2.12 to 0.2.17 (nothing).
NVTX_TOO_NEW_FOR_2023 = (0, 2, 12)
#: nvtx with payloads other than int and float that was seen to reach an export.
NVTX_WITH_BINARY = (0, 2, 15)
#: nsys before this year records nothing of those. Tried: 2023.4 (nothing), 2025.3 (all).
NSYS_FOR_NEW_NVTX = (2024,)
#: The newest nvtx that every nsys records.
NVTX_FOR_ALL = "0.2.11"


def version_numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2023.4.4.54-234433681190v0`` gives (2023, 4, 4, 54).

    Raises:
        ValueError: it does not begin with a number.
    """
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", text)
    if match is None:
        raise ValueError(f"no version: {text!r}")
    return tuple(int(part) for part in match[1].split("."))


def nvtx_records_under(nvtx_version: str, nsys_version: str) -> bool:
    """Whether this nsys records what this nvtx (the Python package) emits.

    Raises:
        ValueError: one of them is no version.
    """
    old_nsys = version_numbers(nsys_version) < NSYS_FOR_NEW_NVTX
    return not (version_numbers(nvtx_version) >= NVTX_TOO_NEW_FOR_2023 and old_nsys)


def carries_binary(nvtx_version: str, nsys_knows_blobs: bool) -> bool:
    """Whether payloads of arrays and structs get from this nvtx into an export.

    Parameters:
        nvtx_version: of the Python package that emits.
        nsys_knows_blobs: whether ``nsys export --help`` names ``--include-blobs``; those that do record them.

    Raises:
        ValueError: no version.
    """
    return nsys_knows_blobs and version_numbers(nvtx_version) >= NVTX_WITH_BINARY


def payload_encoding(requested: str, nvtx_version: str, nsys_knows_blobs: bool | None) -> tuple[str, str]:
    """The encoding to emit payloads in, and why.

    Parameters:
        requested: ``auto``, ``binary`` or ``words``, as NVTXMOE_PAYLOAD has it.
        nvtx_version: of the Python package that emits.
        nsys_knows_blobs: as for :func:`carries_binary`; None where the nsys can't be asked.

    Returns:
        ``binary`` or ``words``, and the reason as a clause. ``binary`` on request is obeyed wherever nvtx can emit it,
        although an old nsys will lose it; where nvtx can't, words are all there is.

    Raises:
        ValueError: no version, or another request.
    """
    if requested not in {"auto", BINARY, WORDS}:
        raise ValueError(f"no payload encoding: {requested!r}")
    if requested == WORDS:
        return WORDS, "asked for"
    if version_numbers(nvtx_version) < NVTX_WITH_BINARY:
        newer = ".".join(map(str, NVTX_WITH_BINARY))
        return WORDS, f"nvtx {nvtx_version} carries int and float payloads only, binary ones need {newer} or newer"
    if requested == BINARY:
        return BINARY, "asked for"
    if nsys_knows_blobs is None:
        return BINARY, f"nvtx {nvtx_version} carries binary payloads; the nsys could not be asked"
    if not nsys_knows_blobs:
        return WORDS, "this nsys cannot export binary payloads (it has no --include-blobs)"
    return BINARY, f"nvtx {nvtx_version} and this nsys carry binary payloads"
