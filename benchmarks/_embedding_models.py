"""all-MiniLM-L6-v2 in other forms, built on the spot: a static table distilled from it, and an ONNX graph of it."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["distil_static", "export_onnx", "missing_for_onnx", "open_onnx"]

STATIC_DIM = 256
_NEEDED_FOR_ONNX = ("onnx", "onnxruntime", "onnxscript")
_BATCH_TOKENS = 256


def distil_static(model: Any, texts: Sequence[str], *, whole_vocabulary: bool, folder: Path) -> int:
    """Save in `folder` a static model: a text's vector is the mean of fixed vectors of its tokens.

    A token's vector is the model's own vector of that token alone, projected on the 256 first principal components of
    all of them (each divided by the root of its deviation: half whitened), and weighed by the logarithm of its place in
    the vocabulary, which lists frequent tokens first (after Model2Vec, 2024). Returns the number of tokens; without
    `whole_vocabulary` only those of `texts`.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = tokenizer.get_vocab_size()
    if whole_vocabulary:
        special = {model.tokenizer.pad_token_id, model.tokenizer.cls_token_id, model.tokenizer.sep_token_id}
        names = {number: token for token, number in tokenizer.get_vocab().items()}
        wanted = [n for n in range(size) if n not in special and not names[n].startswith("[unused")]
    else:
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        wanted = sorted({number for encoding in encoded for number in encoding.ids})
    found = []
    with torch.inference_mode():
        for start in range(0, len(wanted), _BATCH_TOKENS):
            some = torch.tensor(wanted[start : start + _BATCH_TOKENS])
            ids = torch.full((len(some), 3), model.tokenizer.cls_token_id)
            ids[:, 1], ids[:, 2] = some, model.tokenizer.sep_token_id
            output = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            found.append(output["sentence_embedding"].numpy())
    vectors = np.concatenate(found).astype(np.float64)
    vectors -= vectors.mean(axis=0)
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    projected = vectors @ axes[:, ::-1][:, :STATIC_DIM]
    projected /= np.sqrt(projected.std(axis=0))
    table = np.zeros((size, projected.shape[1]), dtype=np.float32)
    table[wanted] = projected * np.log1p(np.array(wanted))[:, None]
    static = StaticEmbedding(tokenizer, embedding_weights=table)
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(folder))
    return len(wanted)


def missing_for_onnx() -> list[str]:
    """The libraries that the ONNX rows need and that are not installed."""
    return [name for name in _NEEDED_FOR_ONNX if importlib.util.find_spec(name) is None]


class _Pooled(torch.nn.Module):
    """Token ids and mask, each (n, length) -> (n, dim): the whole model as one function of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.inner({"input_ids": input_ids, "attention_mask": attention_mask})[
            "sentence_embedding"
        ]
        return vectors


def export_onnx(model: Any, folder: Path) -> dict[str, Path]:
    """Write the model as an ONNX graph in float32, and with weights and activations in 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    ids = torch.randint(1000, 2000, (3, 12))
    paths = {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
    axes = {0: torch.export.Dim("rows", min=1, max=1024), 1: torch.export.Dim("length", min=2, max=512)}
    for name in ("", "onnxscript", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            _Pooled(model).eval(),
            (ids, torch.ones_like(ids)),
            str(paths["fp32"]),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            dynamo=True,
            verbose=False,
            external_data=False,
        )
        quantize_dynamic(str(paths["fp32"]), str(paths["int8"]), weight_type=QuantType.QInt8)
    return paths


def open_onnx(path: Path, tokenizer: Any, threads: int, limit: int) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """A function texts -> (n, dim), rows of length 1; length-sorted batches of about 256 tokens."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        ids = tokenizer(list(texts), truncation=True, max_length=limit, padding=False)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        parts, start = [], 0
        while start < len(order):
            length = len(ids[order[start]])
            rows = order[start : start + max(1, _BATCH_TOKENS // length)]
            tokens = np.zeros((len(rows), length), dtype=np.int64)
            mask = np.zeros_like(tokens)
            for place, row in enumerate(rows):
                tokens[place, : len(ids[row])] = ids[row]
                mask[place, : len(ids[row])] = 1
            parts.append(session.run(None, {"input_ids": tokens, "attention_mask": mask})[0])
            start += len(rows)
        result = np.empty((len(order), parts[0].shape[1]), dtype=np.float32)
        result[order] = np.concatenate(parts)
        return result / np.linalg.norm(result, axis=1, keepdims=True)

    return encode
