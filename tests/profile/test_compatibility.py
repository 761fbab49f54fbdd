"""Which nvtx goes with which nsys. What the rules say was tried is in docs/reference/supported-versions.md."""

from __future__ import annotations

import pytest

from nvtxmoe.nsys_compatibility import carries_binary, nvtx_records_under, payload_encoding, version_numbers

OLD, NEW = "2023.4.4.54-234433681190v0", "2025.3.1.90-253135822126v0"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (OLD, (2023, 4, 4, 54)), ("0.2.15", (0, 2, 15)), ("0.2.15.post1", (0, 2, 15)), ("2.13.0+cpu", (2, 13, 0)),
        ("0.33.1rc1.dev3", (0, 33, 1)), ("v1.2", (1, 2)), (" 3", (3,)),
    ],
)  # fmt: skip
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "unknown", "x1.2"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="no version"):
        version_numbers(text)


@pytest.mark.parametrize("nsys", [OLD, NEW])
@pytest.mark.parametrize("nvtx", ["0.2.10", "0.2.11", "0.2.12", "0.2.14", "0.2.15", "0.2.17"])
def test_only_an_old_nsys_misses_a_new_nvtx(nvtx: str, nsys: str) -> None:
    assert nvtx_records_under(nvtx, nsys) == (nsys == NEW or nvtx in ("0.2.10", "0.2.11"))


@pytest.mark.parametrize(
    ("nvtx", "blobs", "carries"),
    [("0.2.11", True, False), ("0.2.14", True, False), ("0.2.15", True, True), ("0.2.17", False, False)],
)
def test_binary_payloads_need_both(nvtx: str, blobs: bool, carries: bool) -> None:
    assert carries_binary(nvtx, blobs) is carries


@pytest.mark.parametrize(
    ("requested", "nvtx", "blobs", "encoding", "reason"),
    [
        ("auto", "0.2.15", True, "binary", "nvtx 0.2.15 and this nsys carry binary payloads"),
        ("auto", "0.2.15", False, "words", "no --include-blobs"),
        ("auto", "0.2.15", None, "binary", "could not be asked"),
        ("auto", "0.2.11", True, "words", "nvtx 0.2.11 carries int and float payloads only"),
        ("auto", "0.2.11", None, "words", "need 0.2.15 or newer"),
        ("words", "0.2.17", True, "words", "asked for"),
        ("binary", "0.2.17", False, "binary", "asked for"),
        ("binary", "0.2.11", True, "words", "nvtx 0.2.11"),
    ],
)
def test_the_encoding_of_payloads(requested: str, nvtx: str, blobs: bool | None, encoding: str, reason: str) -> None:
    found = payload_encoding(requested, nvtx, blobs)
    assert found[0] == encoding
    assert reason in found[1]


def test_another_request() -> None:
    with pytest.raises(ValueError, match="no payload encoding: 'text'"):
        payload_encoding("text", "0.2.15", True)
