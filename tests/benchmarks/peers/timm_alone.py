"""timm beside a torchvision whose operators do not load with a CPU build of torch; their names are enough for timm."""

import torch

try:
    import torchvision  # noqa: F401  (as timm needs it)
except RuntimeError:
    pass
if not hasattr(torch.ops.torchvision, "nms"):
    _OPERATORS = torch.library.Library("torchvision", "DEF")
    _OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for _name in ("qnms", "roi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward", "roi_pool"):
        _OPERATORS.define(f"{_name}(Tensor x) -> Tensor")
    for _name in ("_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d"):
        _OPERATORS.define(f"{_name}(Tensor x) -> Tensor")
    _OPERATORS.define("_deform_conv2d_backward(Tensor x) -> Tensor")

import timm  # noqa: E402, F401
