"""What do Captum, pytorch-grad-cam and scikit-image say where our explanations are compared with them?

Runs where torch, timm, Captum 0.9, pytorch-grad-cam 1.5 and scikit-image 0.26 are installed, never in the test suite:

    python -m venv VENV && VENV/bin/pip install torch==2.13.0 numpy captum==0.9.0 grad-cam==1.5.7 scikit-image==0.26.0
    VENV/bin/pip install --no-deps torchvision==0.28.0 timm
    VENV/bin/python tests/golden/make_explain_golden.py

Writes explain.npz beside itself: maps of a ResNet-18 in double precision at several layers, whose weights the test
makes again with `weights` and imports as a file of timm's. Only `weights`, `images` and the constants are used there.
"""

import pathlib
import zlib

import numpy as np

FILE = pathlib.Path(__file__).with_name("explain.npz")
CLASSES = 3
TARGETS = np.array([1, 0])
LARGE, SMALL = (67, 53), (37, 29)  # height, width
# timm's module -> our layer. The second is a feature map of no single module's name, the last two are inside a block.
LAYERS = {
    "layer2": "layer2",
    "layer3": "backbone/layer3_1",
    "layer4": "layer4",
    "layer3.0.act1": "backbone/layer3_0/norm1",
    "layer3.0.conv1": "backbone/layer3_0/conv1",
}
SCORE_LAYER = ("layer1", "layer1")
IG_STEPS, WINDOW, STRIDE = 20, 9, 4


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict with numbers that depend on the names only; the scale of the activations stays about the same."""
    state = {}
    for name, shape in shapes.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            state[name] = np.zeros(shape, np.int64)
        elif name.endswith("running_var"):
            state[name] = random.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) > 1:
            fan_in = np.prod(shape[1:])
            # A classifier with large weights: pytorch-grad-cam adds 1e-6 to the squares of gradients.
            scale = 20.0 if name == "fc.weight" else 1.0
            state[name] = (scale * random.normal(0, np.sqrt(2 / fan_in), shape)).astype(np.float32)
        elif name.endswith(".weight"):
            state[name] = random.uniform(0.4, 1.0, shape).astype(np.float32)
        else:
            state[name] = random.normal(0, 0.2, shape).astype(np.float32)
    return state


def images(size: tuple[int, int]) -> np.ndarray:
    """Smooth random float32 `[2, H, W, 3]`, about -2..2."""
    random = np.random.default_rng(size[0])
    y, x = np.mgrid[: size[0], : size[1]] / 16
    waves = random.uniform(-1, 1, (2, 1, 1, 3, 4))
    x, y = 6 * x[None, :, :, None], 6 * y[None, :, :, None]
    smooth = np.sin(x * waves[..., 0] + y * waves[..., 1] + 3 * waves[..., 2])
    return (1.5 * smooth + 0.3 * random.normal(size=smooth.shape)).astype(np.float32)


def main() -> None:
    """Writes the file."""
    import torch

    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in (
        "qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward "
        "ps_roi_pool _ps_roi_pool_backward deform_conv2d _deform_conv2d_backward"
    ).split():
        operators.define(f"{name}(Tensor x) -> Tensor")
    import timm

    model = timm.create_model("resnet18", pretrained=False, num_classes=CLASSES).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights(shapes).items()})
    model = model.double()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    large, small = (torch.from_numpy(images(size)).movedim(-1, 1).double() for size in (LARGE, SMALL))
    found = {"logits": model(large).detach().numpy()}
    found |= class_activation_maps(model, large, small) | captum_layers(model, large) | captum_inputs(model, small)
    assert all(value.max((1, 2)).all() for name, value in found.items() if "cam" in name), "a map is all zeros"
    found |= similarity()
    kept = {name: np.asarray(value, np.float64 if name == "logits" else np.float32) for name, value in found.items()}
    np.savez_compressed(FILE, **kept)
    print({name: (value.shape, float(np.abs(value).max())) for name, value in kept.items()}, FILE.stat().st_size)


def class_activation_maps(model, inputs, small) -> dict[str, np.ndarray]:
    """Raw maps `[2, h, w]` of pytorch-grad-cam, and of one layer its final picture, thinned out."""
    import torch
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(k)) for k in TARGETS]
    found = {}

    def raw(kind, name, inputs=inputs):
        layer = model.get_submodule(name)
        with kind(model=model, target_layers=[layer]) as cam:
            final = cam(input_tensor=inputs, targets=targets)
            taken = cam.activations_and_grads
            activation = taken.activations[0].cpu().detach().numpy()
            gradient = taken.gradients[0].cpu().detach().numpy() if taken.gradients else None
            return np.maximum(cam.get_cam_image(inputs, layer, targets, activation, gradient), 0), final

    for name in LAYERS:
        found[f"gradcam/{name}"], final = raw(GradCAM, name)
        if name == "layer3":
            found["gradcam_final/layer3"] = final[:, ::5, ::3]
        found[f"gradcam++/{name}"], _ = raw(GradCAMPlusPlus, name)
    # The authors of Score-CAM enlarge the maps with align_corners=False, pytorch-grad-cam with True.
    torch.nn.UpsamplingBilinear2d = lambda size: torch.nn.Upsample(size=size, mode="bilinear", align_corners=False)
    found[f"scorecam/{SCORE_LAYER[0]}"], _ = raw(ScoreCAM, SCORE_LAYER[0], small)
    return found


def captum_layers(model, inputs) -> dict[str, np.ndarray]:
    """Raw maps `[2, h, w]` of Captum's Grad-CAM."""
    import torch
    from captum.attr import LayerGradCam

    found = {}
    for name in LAYERS:
        method = LayerGradCam(model, model.get_submodule(name))
        maps = method.attribute(inputs, target=torch.from_numpy(TARGETS), relu_attributions=True)
        found[f"captum_gradcam/{name}"] = maps[:, 0].detach().numpy()
    return found


def captum_inputs(model, inputs) -> dict[str, np.ndarray]:
    """Integrated gradients (sum over channels, and its gap), occlusion."""
    import torch
    from captum.attr import IntegratedGradients, Occlusion

    targets, base = torch.from_numpy(TARGETS), torch.full_like(inputs, 0.25)
    attributions, gap = IntegratedGradients(model).attribute(
        inputs, base, target=targets, n_steps=IG_STEPS, return_convergence_delta=True
    )
    window, stride = (3, WINDOW, WINDOW), (3, STRIDE, STRIDE)
    covered = Occlusion(model).attribute(inputs, window, strides=stride, baselines=base, target=targets)
    return {
        "ig": attributions.sum(1).detach().numpy(),
        "ig_channels": attributions.sum((2, 3)).detach().numpy(),
        "ig_gap": gap.detach().numpy(),
        "occlusion": covered[:, 0].detach().numpy(),
    }


def similarity() -> dict[str, np.ndarray]:
    """scikit-image's SSIM of two noisy pictures of waves, 7 x 7 windows, range 1."""
    from skimage.metrics import structural_similarity

    first, second = (images(SMALL)[i, ..., 0] / 6 + 0.5 for i in range(2))
    return {"ssim": np.array([structural_similarity(first, first + other, data_range=1.0) for other in
                              (0 * second, 0.1 * (second - 0.5), second - first)])}  # fmt: skip


if __name__ == "__main__":
    main()
