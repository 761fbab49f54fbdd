"""Peaks of GPUs: memory bandwidth and dense matrix throughput, each from a named data sheet.

Data sheets of Hopper state matrix throughput with sparsity, twice the dense one; the table holds the dense one.
A name that is not in the table has no peaks: parts of a GPU (MIG), and GPUs whose data sheet nobody compared with a
capture, such as AMD's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Classes of number types with a peak of their own, by the type's name in moe.meta.
TYPE_CLASSES: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "mxfp8": "fp8",
    "int8": "int8",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
}
#: Bits of an element, by the type's name in moe.meta. Scales of quantised activations are left out.
TYPE_BITS: Mapping[str, int] = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float8_e4m3fnuz": 8,
    "mxfp8": 8,
    "int8": 8,
    "nvfp4": 4,
    "mxfp4": 4,
}


@dataclass(frozen=True)
class Peak:
    """Peaks of one GPU.

    Attributes:
        gb_per_s: memory bandwidth, 1e9 bytes per second; None where unknown.
        tflop_per_s: dense matrix throughput, 1e12 operations per second, by class of number types.
        source: data sheet.
    """

    gb_per_s: float | None
    tflop_per_s: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class PeakOptions:
    """Peaks that the user gave in place of the table's; None where not given."""

    gb_per_s: float | None = None
    tflop_per_s: float | None = None


H100 = "NVIDIA H100 Tensor Core GPU data sheet"
H200 = "NVIDIA H200 Tensor Core GPU data sheet"
B200 = "NVIDIA Blackwell Architecture Technical Brief, HGX B200"
A100 = "NVIDIA A100 80GB Tensor Core GPU data sheet"
AMD = "not in the table: no capture of such a GPU was compared with its data sheet"

#: By the name that the driver, nsys and torch give the GPU.
PEAKS: Mapping[str, Peak] = {
    "NVIDIA A100-SXM4-80GB": Peak(2039.0, {"bf16": 312.0, "int8": 624.0}, f"{A100}, SXM"),
    "NVIDIA A100 80GB PCIe": Peak(1935.0, {"bf16": 312.0, "int8": 624.0}, f"{A100}, PCIe"),
    "NVIDIA H100 80GB HBM3": Peak(3350.0, {"bf16": 989.5, "fp8": 1979.0, "int8": 1979.0}, f"{H100}, H100 SXM"),
    "NVIDIA H100 NVL": Peak(3900.0, {"bf16": 835.5, "fp8": 1670.5, "int8": 1670.5}, f"{H100}, H100 NVL"),
    "NVIDIA H200": Peak(4800.0, {"bf16": 989.5, "fp8": 1979.0, "int8": 1979.0}, f"{H200}, H200 SXM"),
    "NVIDIA H200 NVL": Peak(4800.0, {"bf16": 835.5, "fp8": 1670.5, "int8": 1670.5}, f"{H200}, H200 NVL"),
    "NVIDIA B200": Peak(8000.0, {"bf16": 2250.0, "fp8": 4500.0, "int8": 4500.0, "fp4": 9000.0}, B200),
    "AMD Instinct MI300X": Peak(None, {}, AMD),
    "AMD Instinct MI325X": Peak(None, {}, AMD),
    "AMD Instinct MI355X": Peak(None, {}, AMD),
}


def peak_of(device: str | None) -> Peak:
    """Return the peaks of a GPU in the table; without values where it is not there."""
    return PEAKS.get(device or "", Peak(None, {}, "not in the table"))


def peak_gb_per_s(device: str | None, options: PeakOptions) -> float | None:
    """Return the memory bandwidth of a GPU; None where unknown."""
    return options.gb_per_s or peak_of(device).gb_per_s


def peak_tflop_per_s(device: str | None, input_dtype: str | None, options: PeakOptions) -> float | None:
    """Return the dense matrix throughput of a GPU for inputs of this type; None where either is unknown."""
    return options.tflop_per_s or peak_of(device).tflop_per_s.get(TYPE_CLASSES.get(input_dtype or "", ""))


def source_of(device: str | None, options: PeakOptions) -> str:
    """Return where the peaks of a GPU come from."""
    given_peaks = [
        name for name, value in (("bandwidth", options.gb_per_s), ("throughput", options.tflop_per_s)) if value
    ]
    if len(given_peaks) > 1:
        return "options"
    return peak_of(device).source + (f"; {given_peaks[0]} from the options" if given_peaks else "")
