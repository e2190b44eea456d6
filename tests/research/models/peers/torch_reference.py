"""What do timm and torchvision compute with random weights and statistics?

Runs in an environment of its own (`pip install torch`, the CPU build, `pip install --no-deps torchvision timm`, `pip
install numpy pillow pyyaml safetensors "huggingface_hub<2"`) and imports nothing of this project:

    python torch_reference.py resnet50 --library=timm --sizes=139,128 --formats=safetensors,pth --out=DIR

writes the weights as `DIR/weights.FORMAT`, for every size `input_SIZE.npy` (float32 NHWC) and `logits_SIZE.npy`, with
`--layers` also `inner_SIZE.npz` (the outputs of these modules NHWC, `cotangent` `[K]` and `gradient`: of the sum of
logits times `cotangent` with respect to the input, and `gradient64`, the same in double precision), and
`reference.json` with the numbers of parameters.
"""

import argparse
import json
import pathlib

import numpy as np
import torch

# torchvision's compiled operators do not load beside a CPU build of torch; importing it only needs their names.
_OPERATORS = torch.library.Library("torchvision", "DEF")
_OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
for _name in (
    "qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward "
    "ps_roi_pool _ps_roi_pool_backward deform_conv2d _deform_conv2d_backward"
).split():
    _OPERATORS.define(f"{_name}(Tensor x) -> Tensor")


def build(library: str, name: str, classes: int) -> torch.nn.Module:
    """The model with PyTorch's initial weights, in evaluation mode."""
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False, num_classes=classes).eval()
    import torchvision

    options = {"init_weights": True} if name.startswith("inception") else {}
    return getattr(torchvision.models, name)(weights=None, num_classes=classes, **options).eval()


def randomize(model: torch.nn.Module) -> None:
    """Gives every BatchNorm statistics and a scale and bias that are not trivial."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.6, 1.4)
                module.bias.normal_(0, 0.2)


def calibrate(model: torch.nn.Module, size: int) -> None:
    """Random biases, and running statistics that are those of a batch but for random factors.

    With statistics drawn from nowhere activations vanish or explode in deep networks, and the logits show little of the
    first layers or of the biases; so they keep their scale. Offsets near 1 keep most units active: around 0 every
    layer multiplies a rounding error by 1.2 (Poole et al. 2016), and the logits of 100 layers are mostly noise.
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, torch.nn.BatchNorm2d) and getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.2)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
            norm.bias.add_(1.0)
            norm.train()
        model(torch.randn(4, 3, size, size))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_var.clamp_(min=1e-3)
            norm.running_mean.add_(torch.randn_like(norm.running_mean) * 0.2 * norm.running_var.sqrt())
            # The mean of 1 / factor is below 1: scales above 1 would multiply over dozens of layers.
            norm.running_var.mul_(torch.rand_like(norm.running_var) + 0.75)
    model.eval()


def counts(model: torch.nn.Module) -> dict[str, int]:
    """Parameters, and running statistics, without the auxiliary classifiers that only training uses."""
    used = [name for name in model.state_dict() if not name.startswith("AuxLogits.")]
    parameters = {name: value.numel() for name, value in model.named_parameters()}
    buffers = {name: value.numel() for name, value in model.named_buffers() if "running" in name}
    return {
        "parameters": sum(parameters.get(name, 0) for name in used),
        "statistics": sum(buffers.get(name, 0) for name in used),
    }


def save(model: torch.nn.Module, formats: list[str], folder: pathlib.Path) -> None:
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if "safetensors" in formats:
        from safetensors.torch import save_file

        save_file(state, str(folder / "weights.safetensors"))
    if "pth" in formats:
        torch.save(state, folder / "weights.pth")


def nhwc(values: torch.Tensor) -> np.ndarray:
    return values.detach().permute(0, 2, 3, 1).contiguous().numpy()


def input_gradient(model: torch.nn.Module, image: torch.Tensor, cotangent: torch.Tensor) -> np.ndarray:
    image = image.clone().requires_grad_(True)
    (model(image) * cotangent).sum().backward()
    return nhwc(image.grad)


def inner(model: torch.nn.Module, image: torch.Tensor, layers: list[str], seed: int) -> dict[str, np.ndarray]:
    """Outputs of modules, and the gradient with respect to the input in single and in double precision."""
    kept, modules = {}, dict(model.named_modules())

    def keep(layer):
        # An activation behind may work in place: keep a copy.
        return modules[layer].register_forward_hook(
            lambda module, inputs, output: kept.__setitem__(layer, nhwc(output.clone()))
        )

    hooks = [keep(layer) for layer in layers]
    logits = model(image)
    for hook in hooks:
        hook.remove()
    cotangent = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(seed))
    gradient = input_gradient(model, image, cotangent)
    gradient64 = input_gradient(model.double(), image.double(), cotangent.double())
    model.float()
    return {**kept, "cotangent": cotangent.numpy(), "gradient": gradient, "gradient64": gradient64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--library", choices=("timm", "torchvision"), default="timm")
    parser.add_argument("--sizes", default="139,128")
    parser.add_argument("--formats", default="safetensors")
    parser.add_argument("--layers", default="")
    parser.add_argument("--calibrate", action="store_true", help="statistics near those of a batch; random biases")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    model = build(args.library, args.name, args.classes)
    randomize(model)
    if args.calibrate:
        calibrate(model, int(args.sizes.split(",")[0]))
    save(model, args.formats.split(","), folder)
    largest = {}
    for size in map(int, args.sizes.split(",")):
        image = torch.randn(args.batch, 3, size, size)
        with torch.no_grad():
            logits = model(image)
        np.save(folder / f"input_{size}.npy", nhwc(image))
        np.save(folder / f"logits_{size}.npy", logits.numpy())
        largest[size] = float(logits.abs().max())
        if args.layers:
            np.savez(folder / f"inner_{size}.npz", **inner(model, image, args.layers.split(","), args.seed))
    known = {"library": args.library, "name": args.name, **counts(model), "largest_logit": largest}
    (folder / "reference.json").write_text(json.dumps(known))
    print(known)


if __name__ == "__main__":
    main()
