"""What does transformers compute with a small BERT of random weights?

Runs where torch and transformers (5.23) are installed, never in the test suite:

    VENV/bin/python tests/research/text/make_bert_golden.py

Writes bert/config.json and bert/model.safetensors beside itself with `save_pretrained`, and bert/golden.npz: token ids
`[B, L]`, 0 at padding, and what `BertModel` gives for them, `sequence` `[B, L, D]` and `pooled` `[B, D]`, float32.
Weights are drawn twenty times wider than BERT's, and scales and biases at random, so that nothing is nearly linear.
"""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).with_name("bert")
LENGTHS = (13, 1, 7, 2)


def main() -> None:
    """Writes the files."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=17, type_vocab_size=2, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = BertModel(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.4)
    model.save_pretrained(FOLDER)
    random = np.random.default_rng(6)
    ids = np.zeros((len(LENGTHS), max(LENGTHS)), np.int64)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[:length] = random.integers(1, config.vocab_size, length)
    with torch.no_grad():
        found = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(ids != 0).long())
    np.savez_compressed(
        FOLDER / "golden.npz",
        ids=ids.astype(np.int32),
        sequence=found.last_hidden_state.numpy(),
        pooled=found.pooler_output.numpy(),
    )


if __name__ == "__main__":
    main()
