"""What does Captum say where our attributions of genes are compared with it?

Runs where torch and Captum 0.9 are installed (see make_explain_golden.py), never in the test suite:

    VENV/bin/python tests/golden/make_genes_golden.py

Writes genes.npz beside itself: the weights and inputs of a small network, genes - 16 ReLU - 8 tanh - types, in double
precision, and its attributions by Captum's IntegratedGradients (64 Gauss-Legendre nodes) from the baselines zero and
training mean. Expected gradients are the mean of those from every training vector as the baseline, and beside them
stands Captum's GradientShap without noise, which estimates the same from random points.
"""

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_name("genes.npz")
GENES, TYPES, SAMPLES, TRAINING = 13, 3, 5, 9
NODES, RANDOM_POINTS = 64, 40_000


def main() -> None:
    """Writes the file."""
    import torch
    from captum.attr import GradientShap, IntegratedGradients

    random = np.random.default_rng(12)
    sizes = (GENES, 16, 8, TYPES)
    found = {"vectors": random.uniform(0, 12, (SAMPLES, GENES)), "training": random.uniform(0, 12, (TRAINING, GENES)),
             "targets": np.array([0, 1, 2, 1, 0])}  # fmt: skip
    for layer, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        scale = (0.15, 0.5, 2.0)[layer]
        found[f"kernel{layer}"] = random.normal(0, scale, (inputs, outputs))
        found[f"bias{layer}"] = random.normal(0, 0.5, outputs)
    found = {name: value.astype(np.float32) if value.dtype == float else value for name, value in found.items()}
    given = {name: torch.from_numpy(value).double() for name, value in found.items() if value.dtype == np.float32}

    def model(inputs):
        hidden = torch.relu(inputs @ given["kernel0"] + given["bias0"])
        hidden = torch.tanh(hidden @ given["kernel1"] + given["bias1"])
        return hidden @ given["kernel2"] + given["bias2"]

    targets = torch.from_numpy(found["targets"])
    method = IntegratedGradients(model)

    def attributions(start):
        own = method.attribute(given["vectors"], start, target=targets, n_steps=NODES, method="gausslegendre")
        return own.detach().numpy()

    zero, mean = torch.zeros(1, GENES).double(), given["training"].mean(0, keepdim=True)
    torch.manual_seed(0)
    shap = GradientShap(model).attribute(
        given["vectors"], given["training"], n_samples=RANDOM_POINTS, stdevs=0.0, target=targets
    )
    found |= {
        "logits": model(given["vectors"]).numpy(), "zero": attributions(zero), "mean": attributions(mean),
        "expected": np.mean([attributions(own[None]) for own in given["training"]], axis=0),
        "gradient_shap": shap.detach().numpy(),
    }  # fmt: skip
    np.savez_compressed(FILE, **found)
    print({name: value.shape for name, value in found.items()}, FILE.stat().st_size)


if __name__ == "__main__":
    main()
