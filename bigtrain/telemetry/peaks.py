"""Peak arithmetic of known devices, dense. An unknown device has none: no number is better than a false one."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Arithmetic = Literal["fp32", "tf32", "fp16", "bf16", "fp8"]


class _Device(NamedTuple):
    """A device's name holds every word of `words` and none of `without`; TFLOP/s with fp32 accumulation."""

    words: str
    without: str
    tflops: dict[Arithmetic, float]


def _peaks(
    fp32: float, tf32: float | None, fp16: float, bf16: float | None, fp8: float | None
) -> dict[Arithmetic, float]:
    known: dict[Arithmetic, float | None] = {"fp32": fp32, "tf32": tf32, "fp16": fp16, "bf16": bf16, "fp8": fp8}
    return {arithmetic: tflops for arithmetic, tflops in known.items() if tflops is not None}


# All figures are dense: NVIDIA's newer datasheets print them "with sparsity", twice as large. fp32 is the CUDA cores'
# figure, what torch uses unless TF32 is allowed.
_H100_SXM = _peaks(66.9, 494.7, 989.4, 989.4, 1978.9)  # H100 Tensor Core GPU Architecture whitepaper, table 2
_NVL = _peaks(60, 417.5, 835.5, 835.5, 1671)  # H100 NVL and H200 NVL datasheets, halved
_A100 = _peaks(19.5, 156, 312, 312, None)  # A100 datasheet

_DEVICES = (
    _Device("b200", "", _peaks(75, 1125, 2250, 2250, 4500)),  # HGX B200 (1000 W), an eighth of the board's datasheet
    _Device("gb200", "", _peaks(80, 1250, 2500, 2500, 5000)),  # GB200 NVL72 datasheet, per GPU (1200 W)
    _Device("h200 nvl", "", _NVL),
    _Device("h200", "nvl", _H100_SXM),  # H200 datasheet: the H100's arithmetic, more memory
    _Device("gh200", "", _H100_SXM),  # GH200 datasheet
    _Device("h100 nvl", "", _NVL),
    _Device("h100 pcie", "", _peaks(51.2, 378, 756, 756, 1513)),  # H100 whitepaper, table 2
    _Device("h100 hbm3", "nvl pcie", _H100_SXM),
    _Device("h800", "pcie nvl", _H100_SXM),  # the H100 with slower links
    _Device("a100", "", _A100),
    _Device("a800", "", _A100),  # the A100 with slower links
    _Device("l40s", "", _peaks(91.6, 183.2, 362, 362, 733)),  # L40S datasheet
    _Device("l40", "", _peaks(90.5, 90.5, 181, 181, 362)),  # L40 datasheet
    _Device("l4", "", _peaks(30.3, 60, 121, 121, 242.5)),  # L4 datasheet, halved
    _Device("a40", "", _peaks(37.4, 74.8, 149.7, 149.7, None)),  # A40 datasheet
    _Device("a30", "", _peaks(10.3, 82, 165, 165, None)),  # A30 datasheet
    _Device("a10", "", _peaks(31.2, 62.5, 125, 125, None)),  # A10 datasheet (the A10G is another chip: unknown)
    _Device("v100 sxm2", "", _peaks(15.7, None, 125, None, None)),  # V100 datasheet
    _Device("v100 sxm3", "", _peaks(16.4, None, 131, None, None)),  # DGX-2: 450 W
    _Device("v100 pcie", "", _peaks(14, None, 112, None, None)),  # V100 datasheet
    _Device("v100s", "", _peaks(16.4, None, 130, None, None)),  # V100 datasheet
    _Device("t4", "", _peaks(8.1, None, 65, None, None)),  # T4 datasheet
    _Device("rtx 5090", "laptop d", _peaks(104.8, 104.8, 209.5, 209.5, 419)),  # RTX Blackwell whitepaper, appendix
    _Device("rtx 4090", "laptop d", _peaks(82.6, 82.6, 165.2, 165.2, 330.3)),  # Ada whitepaper, appendix A
    _Device("rtx 3090", "laptop ti", _peaks(35.6, 35.6, 71, 71, None)),  # GA102 whitepaper, appendix A
    _Device("rtx 6000 ada", "", _peaks(91.1, 182.1, 364.2, 364.2, 728.5)),  # RTX 6000 Ada datasheet, halved
    _Device("mi300x", "", _peaks(163.4, 653.7, 1307.4, 1307.4, 2614.9)),  # AMD Instinct MI300X datasheet
    _Device("mi325x", "", _peaks(163.4, 653.7, 1307.4, 1307.4, 2614.9)),  # AMD Instinct MI325X datasheet
    _Device("mi250x", "", _peaks(23.9, None, 191.5, 191.5, None)),  # AMD datasheet, halved: a device is one of two dies
)


def peak_flops(device_name: str, arithmetic: Arithmetic) -> float | None:
    """Dense peak of one device in FLOP/s, by the name that the driver gives it (`torch.cuda.get_device_name`).

    None for a device that the table does not know, a slice of one (MIG), or an arithmetic that it lacks.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if "mig" in words:
        return None
    for device in _DEVICES:
        if words.issuperset(device.words.split()) and words.isdisjoint(device.without.split()):
            tflops = device.tflops.get(arithmetic)
            return None if tflops is None else tflops * 1e12
    return None
