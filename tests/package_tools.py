"""Small valid packages with random weights, written with numpy alone, and ways to spoil them.

Independent of qla_runtime on purpose: it is a second reading of docs/file-format.md, checksums included.
"""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FILES = ("config.json", "model.safetensors", "tokenizer.json", "length_configs.json")
DTYPES = {np.dtype(np.uint8): "U8", np.dtype(np.int8): "I8", np.dtype(np.int32): "I32"}
DTYPES |= {np.dtype(np.float32): "F32"}


# ---- CRC-32C ---------------------------------------------------------------------------------------


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


_TABLE = _crc_table()


def _feed(registers: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Feeds row i of the transposed `columns` into every register, byte by byte."""
    for column in columns:
        registers = (registers >> 8) ^ _TABLE[(registers ^ column) & 0xFF]
    return registers


@functools.lru_cache(maxsize=16)  # an attack changes one file of five
def crc32c(data: bytes) -> int:
    """CRC-32C. The data is cut into equal rows that are summed side by side, then joined."""
    width = max(1, int(len(data) ** 0.5))
    rows = len(data) // width
    head = np.frombuffer(data, np.uint8, rows * width).reshape(rows, width)
    sums = _feed(np.zeros(rows, np.uint32), head.T)
    # Feeding zeros is linear over GF(2): know what a row of them does to each bit, know it for all.
    bits = _feed(np.uint32(1) << np.arange(32, dtype=np.uint32), np.zeros((width, 1), np.uint8))
    columns = [int(bit) for bit in bits]
    crc = 0xFFFFFFFF
    for row_sum in sums.tolist():
        skipped, bit = row_sum, 0
        while crc:
            if crc & 1:
                skipped ^= columns[bit]
            crc, bit = crc >> 1, bit + 1
        crc = skipped
    for byte in data[rows * width :]:
        crc = (crc >> 8) ^ int(_TABLE[(crc ^ byte) & 0xFF])
    return crc ^ 0xFFFFFFFF


# ---- The writer ------------------------------------------------------------------------------------


@dataclass
class TinyPackage:
    """A package as plain values. Spoil what you like, then `save`; checksums always fit what is written."""

    config: dict
    tensors: dict[str, np.ndarray]  # in file order, padded as on disk
    length_configs: dict
    tokenizer: dict
    manifest: dict = field(default_factory=dict)  # overrides of manifest entries
    dense: dict[str, np.ndarray] = field(default_factory=dict)  # unpacked int8 weights (N, K)

    def copy(self) -> TinyPackage:
        return copy.deepcopy(self)

    def as_version_0_1(self) -> TinyPackage:
        """The same package as version 0.1 wrote it: its weights in the layout `k64n16k4`."""
        older = self.copy()
        older.manifest["weight_layout"] = "k64n16k4"
        for name, weight in self.dense.items():
            older.tensors[f"{name}.weight"] = pack_as_version_0_1(weight)
        return older

    def with_ternary_words_packed(self) -> TinyPackage:
        """The same package with its word embeddings, which must be ternary, in two bits each."""
        packed = self.copy()
        packed.config["encoder"]["word_embeddings"] = "ternary"
        packed.tensors["embeddings.word.weight"] = pack_words(self.tensors["embeddings.word.weight"])
        return packed

    def as_w2a8(self, only=lambda name: True) -> TinyPackage:
        """The same package with linear layers, which must be ternary, as w2a8: those whose name
        ("layers.0.qkv") `only` accepts."""
        packed = self.copy()
        for name, weight in self.dense.items():
            if only(name):
                _, layer, linear = name.split(".")
                packed.config["linears"][int(layer)][linear]["type"] = "w2a8"
                packed.tensors[f"{name}.weight"] = pack_w2a8(weight)
        return packed

    def save(self, folder: Path | str) -> Path:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        (folder / "length_configs.json").write_text(json.dumps(self.length_configs))
        (folder / "tokenizer.json").write_text(json.dumps(self.tokenizer))
        (folder / "README.md").write_text("# A tiny random package\n")
        (folder / "model.safetensors").write_bytes(safetensors_bytes(self.tensors))
        write_manifest(folder, **self.manifest)
        return folder


def write_manifest(folder: Path, **overrides) -> None:
    """(Re)writes the manifest so that it fits the files as they are now."""
    files = {}
    for name in FILES:
        data = (folder / name).read_bytes()
        files[name] = {"size": len(data), "crc32c": f"{crc32c(data):08x}"}
    manifest = {"format": "qla-package", "format_version": 1, "weight_layout": "n64k4", "files": files}
    manifest.update(overrides)
    seal_manifest(folder, json.dumps(manifest)[:-1] + ', "self_crc32c": "00000000"}')


def seal_manifest(folder: Path, text: str) -> None:
    """Writes a manifest whose self_crc32c is still 00000000, with the right one in its place."""
    crc = crc32c(text.encode())
    sealed = text.replace('"self_crc32c": "00000000"', f'"self_crc32c": "{crc:08x}"')
    (folder / "manifest.json").write_text(sealed)


def safetensors_header(tensors: dict[str, np.ndarray]) -> dict:
    header, offset = {}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    return header


def join_safetensors(header: bytes, data: bytes) -> bytes:
    """The file of this header and data; the header is padded with blanks so that data begins at 64 * i."""
    header += b" " * (-(8 + len(header)) % 64)
    return len(header).to_bytes(8, "little") + header + data


def safetensors_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    data = b"".join(array.tobytes() for array in tensors.values())
    return join_safetensors(json.dumps(safetensors_header(tensors)).encode(), data)


def split_safetensors(content: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def pad16(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.zeros(-len(values) % 16, values.dtype)])


def pack(weight: np.ndarray) -> np.ndarray:
    """(N, K) int8 -> (N/64, K/4, 64, 4), the layout `n64k4`."""
    n, k = weight.shape
    quads = weight.T.reshape(k // 4, 4, n // 64, 64)  # k quad, k in quad, n block, n
    return np.ascontiguousarray(quads.transpose(2, 0, 3, 1))


def unpack(packed: np.ndarray) -> np.ndarray:
    blocks, quads = packed.shape[:2]
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3).reshape(blocks * 64, quads * 4))


def pack_w2a8(weight: np.ndarray) -> np.ndarray:
    """(N, K) of -1, 0, 1 -> (N/64, K/4, 16, 4) bytes of four columns' codes, by the definition, one by one."""
    n, k = weight.shape
    packed = np.zeros((n // 64, k // 4, 16, 4), np.uint8)
    for column in range(n):
        shift = 2 * (column % 64 // 16)
        codes = (weight[column] + 1).astype(np.uint8).reshape(k // 4, 4)
        packed[column // 64, :, column % 16] |= codes << shift
    return packed


def pack_words(table: np.ndarray) -> np.ndarray:
    """(V, H) of -1, 0, 1 -> (V up to a multiple of 4, H/4) bytes, column by column."""
    rows, columns = table.shape
    packed = np.zeros((rows + -rows % 4, columns // 4), np.uint8)
    for column in range(columns):
        byte, shift = column // 64 * 16 + column % 16, 2 * (column % 64 // 16)
        packed[:rows, byte] |= (table[:, column] + 1).astype(np.uint8) << shift
    return packed


def pack_as_version_0_1(weight: np.ndarray) -> np.ndarray:
    """(N, K) int8 -> (K/64, N/16, 16, 16, 4), the layout `k64n16k4`."""
    n, k = weight.shape
    blocks = weight.T.reshape(k // 64, 16, 4, n // 16, 16)  # k block, k quad, k in quad, n block, n
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 2))


_LINEARS = ("qkv", "output", "ffn_in", "ffn_out")
_LABELS = ["negative", "neutral", "positive"]
_TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def _task(kind: str, max_length: int, options: dict) -> dict:
    keys = {
        "span-qa": {"doc_stride": max_length // 3, "max_answer_tokens": max_length // 2},
        "sequence-classification": {"pooler": "dense_tanh", "labels": _LABELS, "problem": "single_label"},
        "token-classification": {"labels": _TAGS},
        "embedding": {"pooling": "mean", "normalize": True},
    }[kind]
    optional = {"similarity", "truncate_dim", "matryoshka_dims"} if kind == "embedding" else set()
    unknown = set(options) - set(keys) - optional
    assert not unknown, f"{kind} has no {unknown}"
    return {
        "kind": kind,
        "max_length": max_length,
        "keep_cls": kind != "token-classification",
        **keys,
        **options,
    }


def tiny_package(
    task: str = "span-qa",
    family: str = "bert",
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 2,
    intermediate: int = 128,
    vocab_size: int = 101,
    max_positions: int = 64,
    max_length: int | None = None,
    activation: str = "per_token",
    ternary: bool = False,
    seed: int = 0,
    **task_options,
) -> TinyPackage:
    """A valid package of any task ("span-qa", "sequence-classification", "token-classification",
    "embedding"), family ("bert", "roberta") and size. `task_options` override the task's own keys.

    Activations stay of order one through the layers, and the attention is far from uniform. `ternary`: weights
    and word embeddings are -1, 0 and 1, in the formats of any others.
    """
    random = np.random.default_rng(seed)
    offset, types = {"bert": (0, 2), "roberta": (2, 1)}[family]
    tensors: dict[str, np.ndarray] = {}
    dense: dict[str, np.ndarray] = {}

    def floats(*shape: int, scale: float = 1.0, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * random.standard_normal(shape)).astype(np.float32)

    most, deviation = (1, 0.816) if ternary else (127, 73.6)

    def integers(*shape: int) -> np.ndarray:
        return random.integers(-most, most + 1, shape, np.int8)

    def add_norm(prefix: str) -> None:
        tensors[prefix + ".weight"] = floats(hidden, scale=0.1, mean=1.0)
        tensors[prefix + ".bias"] = floats(hidden, scale=0.1)

    def add_linear(prefix: str, k: int, n: int) -> None:
        weight = integers(n, k)
        dense[prefix] = weight
        tensors[prefix + ".weight"] = pack(weight)
        spread = 1.5 / (deviation * k**0.5)
        tensors[prefix + ".scale"] = (spread * random.uniform(0.5, 1.5, n)).astype(np.float32)
        tensors[prefix + ".bias"] = floats(n, scale=0.1)
        tensors[prefix + ".column_sum"] = weight.sum(axis=1, dtype=np.int32)

    tensors["embeddings.word.weight"] = integers(vocab_size, hidden)
    scale = 73.6 / deviation * random.uniform(0.01, 0.02, vocab_size)
    tensors["embeddings.word.scale"] = pad16(scale.astype(np.float32))
    tensors["embeddings.position.weight"] = floats(max_positions + offset, hidden, scale=0.3)
    tensors["embeddings.token_type.weight"] = floats(types, hidden, scale=0.3)
    add_norm("embeddings.norm")
    shapes = {"qkv": (hidden, 3 * hidden), "output": (hidden, hidden)}
    shapes |= {"ffn_in": (hidden, intermediate), "ffn_out": (intermediate, hidden)}
    for i in range(layers):
        for name, (k, n) in shapes.items():
            add_linear(f"layers.{i}.{name}", k, n)
        add_norm(f"layers.{i}.attention_norm")
        add_norm(f"layers.{i}.ffn_norm")

    task_spec = _task(task, max_length or max_positions, task_options)
    if task_spec.get("pooler") == "dense_tanh":
        tensors["pooler.weight"] = floats(hidden, hidden, scale=hidden**-0.5)
        tensors["pooler.bias"] = floats(hidden, scale=0.1)
    if task != "embedding":
        outputs = len(task_spec.get("labels", ("start", "end")))
        tensors["head.weight"] = floats(outputs, hidden, scale=hidden**-0.5)
        tensors["head.bias"] = pad16(floats(outputs, scale=0.1))

    linear = {"type": "w8a8", "activation": activation}
    if activation == "static":
        linear |= {"scale": 0.04, "zero_point": 128}
    encoder = {"norm": "post", "activation": "gelu_erf", "positions": "absolute", "position_offset": offset}
    encoder |= {"layers": layers, "hidden": hidden, "heads": heads, "intermediate": intermediate}
    encoder |= {"vocab_size": vocab_size, "max_positions": max_positions, "type_vocab_size": types}
    encoder |= {"norm_eps": 1e-12 if family == "bert" else 1e-5}
    config = {
        "format_version": 1,
        "name": f"tiny-{family}-{task}",
        "encoder": encoder,
        "linears": [{name: dict(linear) for name in _LINEARS} for _ in range(layers)],
        "task": task_spec,
    }
    return TinyPackage(config, tensors, _length_configs(layers), tiny_tokenizer(family, vocab_size), dense=dense)


def _length_configs(layers: int) -> dict:
    def config(name: str, last: float) -> dict:
        values = np.linspace(1.0, last, layers + 1)[1:].tolist() if last < 1 else [1] * layers
        return {"name": name, "rule": "ratio", "values": values, "keep_cls": True}

    full = config("full", 1.0) | {
        "macs_share": 1.0,
        "accuracy": {"metric": "f1", "value": 82.5, "data": "nothing"},
    }
    first = max(20, layers)
    frontier = {"rule": "tokens", "values": list(range(first, first - layers, -1)), "keep_cls": False}
    return {
        "format_version": 1,
        "configs": [full, config("balanced", 0.5), config("fast", 0.2)],
        "frontier": [frontier],
    }


def tiny_tokenizer(family: str, vocab_size: int) -> dict:
    """A Hugging Face tokenizer of single characters: WordPiece for BERT, byte-level BPE for RoBERTa."""
    special = "[PAD] [UNK] [CLS] [SEP] [MASK]" if family == "bert" else "<s> <pad> </s> <unk>"
    special = special.split()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,?!'-")
    pieces = letters + (["##" + letter for letter in letters] if family == "bert" else ["\u0120"])
    words = (special + pieces)[:vocab_size]
    words += [f"[unused{i}]" for i in range(vocab_size - len(words))]
    vocab = {word: i for i, word in enumerate(words)}
    common = {"version": "1.0", "truncation": None, "padding": None}
    common["added_tokens"] = [
        {"id": vocab[word], "content": word, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for word in special
    ]
    if family == "bert":
        return common | {
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
            | {"strip_accents": None, "lowercase": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "BertProcessing",
                "sep": ["[SEP]", vocab["[SEP]"]],
                "cls": ["[CLS]", vocab["[CLS]"]],
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
            | {"max_input_chars_per_word": 100, "vocab": vocab},
        }
    return common | {
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", vocab["</s>"]],
            "cls": ["<s>", vocab["<s>"]],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "vocab": vocab, "merges": []}
        | {"continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False},
    }


# ---- Mutators: each changes one file of a saved package --------------------------------------------


def edit_bytes(folder: Path, name: str, change, *, reseal: bool = True) -> None:
    """Replaces a file's bytes by change(bytes); `reseal` makes the manifest fit again."""
    path = Path(folder) / name
    path.write_bytes(change(path.read_bytes()))
    if reseal:
        write_manifest(Path(folder))


def edit_json(folder: Path, name: str, change) -> None:
    """Lets change(parsed) alter a JSON file in place; the manifest is made to fit."""

    def rewrite(content: bytes) -> bytes:
        parsed = json.loads(content)
        change(parsed)
        return json.dumps(parsed).encode()

    edit_bytes(folder, name, rewrite)


def edit_header(folder: Path, change) -> None:
    """Lets change(header) alter the safetensors header in place; data and manifest follow."""

    def rewrite(content: bytes) -> bytes:
        header, data = split_safetensors(content)
        change(header)
        return join_safetensors(json.dumps(header).encode(), data)

    edit_bytes(folder, "model.safetensors", rewrite)
