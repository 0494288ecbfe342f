"""Models that nps-merge has written, as state dicts: merged HDF5 files, models in compressed archives, folders.

    import nps_merge

    with nps_merge.open("merged.h5") as model:          # or "archive.h5#plain", or a folder of safetensors files
        print(model["model.norm.weight"])               # a tensor is read when it is asked for
    state = nps_merge.load("archive.h5#plain")          # all of them, for load_state_dict()
    nps_merge.models("archive.h5")                      # ["parity", "plain"]

Tensors are torch's where torch is installed (framework="torch"), else NumPy's (framework="numpy"): there bfloat16 comes as
float32 with the same values. Needs h5py and NumPy. The formats: docs/formats.md.
"""

import collections.abc
import hashlib
import json
import pathlib
import struct
import zlib

import h5py
import numpy as np

__all__ = ["load", "models", "open"]

BLOCK, UNIT = 65536, 1024
TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


# ---- numbers -----------------------------------------------------------------------------------------------------------


def widen(dtype, bits):
    """The values of stored floating-point numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else bits


def narrow(x, dtype):
    """Round float64 to a stored type once, to nearest even; to bfloat16 by way of float32 rounded to odd."""
    if dtype != "BF16":
        return x.astype(TYPES[dtype])
    near = x.astype(np.float32)
    bits = near.view(np.uint32) - (np.abs(near.astype(np.float64)) > np.abs(x))
    bits = (bits | (near.astype(np.float64) != x)).astype(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_torch(dtype, bits):
    import torch

    array = np.array(bits)  # a copy that belongs to the tensor
    return torch.from_numpy(array).view(torch.bfloat16) if dtype == "BF16" else torch.from_numpy(array)


# ---- where tensors are stored ------------------------------------------------------------------------------------------


class Stored(collections.abc.Mapping):
    """Tensors by name. `raw(name)` gives the safetensors name of the type and the bits as an array."""

    framework, config = "numpy", None

    def __getitem__(self, name):
        if name not in self:
            raise KeyError(name)
        dtype, bits = self.raw(name)
        return as_torch(dtype, bits) if self.framework == "torch" else widen(dtype, bits)

    def __contains__(self, name):
        return name in self.names

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        pass


def type_of(dataset):
    kind = dataset.id.get_type()
    if isinstance(kind, h5py.h5t.TypeFloatID) and kind.get_size() == 2:
        return "BF16" if kind.get_ebias() == 127 else "F16"
    if isinstance(kind, h5py.h5t.TypeEnumID):
        return "BOOL"
    return next(name for name, code in TYPES.items() if name != "BF16" and dataset.dtype == np.dtype(code))


def read_dataset(dataset):
    """As it is stored: HDF5's own conversion of bfloat16 is slow."""
    dtype = type_of(dataset)
    if dtype != "BF16":
        return dtype, dataset[()]
    bits = np.empty(dataset.shape, np.uint16)
    if bits.size:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=dataset.id.get_type())
    return dtype, bits


class Datasets(Stored):
    """The datasets of one group of an HDF5 file."""

    def __init__(self, file, group):
        self.file, self.group = file, file.get(group, {})
        self.names = sorted(self.group)
        self.config = json.loads(file.attrs["config_json"]) if "config_json" in file.attrs else None

    def raw(self, name):
        return read_dataset(self.group[name])

    def close(self):
        self.file.close()


class Safetensors(Stored):
    """The safetensors files of a folder, or one file."""

    def __init__(self, path):
        self.place = {}
        for file in self.files(path):
            with file.open("rb") as f:
                size = struct.unpack("<Q", f.read(8))[0]
                header = json.loads(f.read(size))
            for name, tensor in header.items():
                if name != "__metadata__":
                    self.place[name] = (file, 8 + size + tensor["data_offsets"][0], tensor["dtype"], tensor["shape"])
        self.names = sorted(self.place)
        config = (path if path.is_dir() else path.parent) / "config.json"
        self.config = json.loads(config.read_text()) if config.is_file() else None

    @staticmethod
    def files(path):
        index, single = path / "model.safetensors.index.json", path / "model.safetensors"
        if not path.is_dir():
            return [path]
        if not single.is_file() and index.is_file():
            return [path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        return [single] if single.is_file() else sorted(path.glob("*.safetensors"))

    def raw(self, name):
        file, offset, dtype, shape = self.place[name]
        count = int(np.prod(shape, dtype=np.int64))
        return dtype, np.fromfile(file, TYPES[dtype], count, offset=offset).reshape(shape)


# ---- archives ----------------------------------------------------------------------------------------------------------


def content_hash(path, block=16 * 1024 * 1024):
    outer = hashlib.sha256()
    with pathlib.Path(path).open("rb") as f:
        while part := f.read(block):
            outer.update(hashlib.sha256(part).digest())
    return outer.hexdigest()


def unpack_positions(data, kept):
    """Gaps: `shift` low bits each, then the high parts in unary."""
    shift, low_bytes = int(data[0]), (kept * int(data[0]) + 7) // 8
    low = np.unpackbits(data[1 : 1 + low_bytes], count=kept * shift, bitorder="little").reshape(kept, shift)
    ends = np.flatnonzero(np.unpackbits(data[1 + low_bytes :], bitorder="little"))
    if len(ends) != kept:
        raise ValueError("another number of positions than of kept entries")
    gaps = (np.diff(ends, prepend=-1) - 1 << shift) + low @ (1 << np.arange(shift))
    return np.cumsum(gaps + 1) - 1


def unpack_values(data, kept, bits):
    """Deflate without a header; 16 bits: the high bytes, then the low ones."""
    raw = np.frombuffer(zlib.decompress(data.tobytes(), wbits=-15), np.uint8)
    if len(raw) != kept * (2 if bits > 8 else 1):
        raise ValueError("another number of values than of kept entries")
    if bits <= 8:
        return raw.view(np.int8).astype(np.float32)
    return (raw[:kept].astype(np.uint16) << 8 | raw[kept:]).view(np.int16).astype(np.float32)


class Expanded(Stored):
    """A model of an archive: the base, the update of each coded tensor on top of it, and the head."""

    def __init__(self, file, name, base):
        self.file, self.base, self.group = file, base, file["models"][name]
        self.heads = file[f"heads/{name}"] if f"heads/{name}" in file else {}
        self.config = json.loads(self.group.attrs["config_json"]) if "config_json" in self.group.attrs else base.config
        index = file["index"]
        self.bits = int(index.attrs["value_bits"])
        self.index = {name: i for i, name in enumerate(index["name"].asstr()[:])}
        self.dtype, self.count = index["dtype"].asstr()[:], index["count"][:]
        self.blocks = self.group["blocks"][:].astype(np.int64)
        self.ends = np.cumsum(self.blocks[:, 1:3], axis=0)  # of positions and values
        self.matrix = index["matrix"][:] != 0 if "matrix" in index else np.zeros(len(self.index), bool)
        self.number = np.cumsum(self.matrix) - 1  # among those that are stored by their factors
        in_blocks = np.where(self.matrix, 0, self.count)
        self.first_block = np.concatenate([[0], np.cumsum(-(-in_blocks // BLOCK))])
        self.first_unit = np.concatenate([[0], np.cumsum(-(-in_blocks // UNIT))])
        self.names = sorted({*base, *self.heads})

    def update(self, name):
        """What is added to a tensor of the base: float32, flat."""
        i = self.index[name]
        if self.matrix[i]:
            return self.product(self.number[i], self.base.raw(name)[1].shape)
        units = self.group["scales"][self.first_unit[i] : self.first_unit[i + 1]]
        update = np.zeros(self.count[i], np.float32)
        for b in range(self.first_block[i], self.first_block[i + 1]):
            at = (b - self.first_block[i]) * BLOCK
            self.expand(b, units[at // UNIT : (at + BLOCK) // UNIT], update[at : at + BLOCK])
        return update

    def product(self, j, shape):
        """The sum of the products of singular vectors: exact products, added up in float64 one after the other."""
        table = self.group["matrices"][:]
        rank, byte_count, checksum = (int(x) for x in table[j])
        first_scale, first_byte = 2 * int(table[:j, 0].sum()), int(table[:j, 1].sum())
        scales = self.group["triple_scales"][first_scale : first_scale + 2 * rank].astype(np.float32)
        data = self.group["triples"][first_byte : first_byte + byte_count]
        if zlib.crc32(data.tobytes(), zlib.crc32(scales.astype("<f4").tobytes())) != checksum:
            raise ValueError(f"{self.file.filename}: {self.group.name}: matrix {j} does not have its checksum")
        out = np.zeros(shape)
        if rank:
            codes = unpack_values(data, rank * sum(shape), self.bits).reshape(rank, -1)
            for code, a, b in zip(codes, scales[::2], scales[1::2]):
                out += np.outer((a * code[: shape[0]]).astype(np.float64), (b * code[shape[0] :]).astype(np.float64))
        return out.astype(np.float32).reshape(-1)

    def expand(self, b, scales, out):
        kept, position_bytes, value_bytes, checksum = (int(x) for x in self.blocks[b])
        positions = self.group["positions"][self.ends[b, 0] - position_bytes : self.ends[b, 0]]
        values = self.group["values"][self.ends[b, 1] - value_bytes : self.ends[b, 1]]
        crc = zlib.crc32(values.tobytes(), zlib.crc32(positions.tobytes(), zlib.crc32(scales.astype("<f4").tobytes())))
        if crc != checksum & 0xFFFFFFFF:
            raise ValueError(f"{self.file.filename}: {self.group.name}: block {b} does not have its checksum")
        if kept:
            at = unpack_positions(positions, kept)
            out[at] = scales[at // UNIT] * unpack_values(values, kept, self.bits)

    def raw(self, name):
        if name in self.heads:
            return read_dataset(self.heads[name])
        if name not in self.index:
            return self.base.raw(name)
        dtype, bits = self.base.raw(name)
        sum_ = widen(dtype, bits).astype(np.float64) + self.update(name).astype(np.float64).reshape(bits.shape)
        to = self.dtype[self.index[name]]
        return to, narrow(sum_, to)

    def close(self):
        self.base.close()
        self.file.close()


def open_base(file, verify):
    """What an archive's models are changes of: in the archive, or where it says, with the content it says."""
    attributes = file["base"].attrs
    if "path" not in attributes:
        return Datasets(file, "tensors")
    if set("+#") & set(attributes["path"]) and not pathlib.Path(attributes["path"]).exists():
        raise ValueError(f"{file.filename}: its base is not stored but computed, {attributes['path']}, which this module does "
                         "not do: expand the model with nps-convert")  # fmt: skip
    beside = pathlib.Path(file.filename).parent / attributes["name"]
    path = next((p for p in (pathlib.Path(attributes["path"]), beside) if p.exists()), None)
    if path is None:
        raise FileNotFoundError(f"{file.filename}: its base is not there: {attributes['path']}, {beside}")
    files = [path] if path.is_file() else Safetensors.files(path)
    sizes, hashes = file["base/size"][:], file["base/sha256"].asstr()[:]
    same = [p.stat().st_size for p in files] == list(sizes)
    if not same or (verify and [content_hash(p) for p in files] != list(hashes)):
        raise ValueError(f"{path}: is not what {file.filename} was made from: its content has changed")
    return open_plain(path, verify)


def open_plain(path, verify):
    if not path.is_file() or not h5py.is_hdf5(path):
        return Safetensors(path)
    file = h5py.File(path, "r")
    if file.attrs.get("format") == "nps-archive":
        return open_base(file, verify)
    return Datasets(file, "tensors")


# ---- what is offered ---------------------------------------------------------------------------------------------------


def split(path):
    """("archive.h5", "NAME") of "archive.h5#NAME"; the name is None where there is none."""
    path = str(path)
    for at in (i for i, c in enumerate(path) if c == "#"):
        if not pathlib.Path(path).exists() and pathlib.Path(path[:at]).is_file():
            return pathlib.Path(path[:at]), path[at + 1 :]
    return pathlib.Path(path), None


def open(path, framework=None, verify=True):
    """A read-only mapping of tensors, to be closed (or used with `with`); `.config` is the Hugging Face config.

    path: a merged HDF5 file, a folder, a safetensors file, or "ARCHIVE#NAME"; an archive without a name is its base.
    framework: "torch" or "numpy"; default: torch where it is installed.
    verify: whether the content of an archive's base is checked against its hash, for which all of it is read.
    """
    if framework is None:
        import importlib.util

        framework = "torch" if importlib.util.find_spec("torch") else "numpy"
    path, name = split(path)
    if name is None:
        model = open_plain(path, verify)
    else:
        file = h5py.File(path, "r")
        if name not in file.get("models", {}):
            raise KeyError(f"{path}: has no model {name!r}, but {', '.join(sorted(file.get('models', {})))}")
        model = Expanded(file, name, open_base(file, verify))
    model.framework = framework
    return model


def load(path, framework=None, verify=True):
    """All tensors of a model as a dict."""
    with open(path, framework, verify) as model:
        return dict(model)


def models(path):
    """The names of the models in an archive."""
    with h5py.File(path, "r") as file:
        return sorted(file.get("models", {}))
