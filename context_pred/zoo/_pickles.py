"""Pickles read as data: the values they describe are built here, and nothing they name is imported or called.

``pickletools`` splits the bytes into opcodes; the small stack machine below builds dictionaries, lists, tuples, numbers
and texts from them, and records the tensors and storages of torch. Everything else that a checkpoint may rightly hold
(training logs of mmengine, NumPy scalars, dates) becomes an ``Opaque`` with its name and no behaviour. A name that is
on no list stops the reading, so that a file made to run code is reported and not half-used.

``pickle.Unpickler`` with its own ``find_class`` was no choice: its C code calls what it is given, and one
``LONG_BINPUT`` makes it allocate gigabytes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from ..errors import WeightsError

MAX_DIMENSIONS = 8

# The storages of torch, by the name that a pickle gives them, and their dtypes.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
}

# Packages whose objects checkpoints of this field hold beside the weights; all of it becomes Opaque.
HARMLESS_PACKAGES = {
    *("mmcls", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "mmselfsup", "openselfsup"),
    *("addict", "numpy", "omegaconf", "yacs"),
}
HARMLESS = {
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object"),
        *("range", "set", "slice", "str", "tuple"),
    },
    "collections": {"Counter", "defaultdict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "functools": {"partial"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "torch": {
        *("Tensor", "Size", "device", "dtype", "bool", "double", "float", "half", "int", "long", "short", "uint8"),
        *("bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("strided", "preserve_format", "contiguous_format", "channels_last"),
    },
    "torch.torch_version": {"TorchVersion"},
    "types": {"SimpleNamespace"},
    "uuid": {"UUID"},
}
# What an object that is a model, not its weights, is made of.
MODEL_PACKAGES = ("torch.nn.modules.", "torchvision.models.", "timm.models.")
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something that a checkpoint holds and nobody here needs; ``name`` says what it would have been."""

    name: str


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A torch storage: its key in the file, its type, and how many elements it claims to have."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A torch tensor: a view of ``storage``; sizes, strides and offset count elements and are not checked yet."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class View(NamedTuple):
    """What the oldest files know as a storage inside a storage."""

    root: str
    offset: int
    numel: int


class Reader:
    """A stack machine for one pickle.

    ``views`` collects the storages that are parts of others (files of torch before 0.4 have them).
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}
        self.views: dict[str, View] = {}
        self.seen = 0
        self.copied = 0

    def read(self, stream: IO[bytes]) -> Any:
        """Read one pickle from ``stream`` and leave the stream right behind it.

        Raises:
            WeightsError: the bytes are no pickle, or the pickle names something that is on no list.
        """
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self.seen += 1
                if opcode.name == "STOP":
                    return self.stack.pop()
                if opcode.name not in _OPCODES:
                    raise WeightsError(f"damaged pickle (opcode {opcode.name}, which torch does not write)")
                _OPCODES[opcode.name](self, argument)
        except WeightsError:
            raise
        # The bytes are anybody's: whatever goes wrong in taking them apart means that they are damaged.
        except Exception as error:
            raise WeightsError(f"damaged pickle ({type(error).__name__}: {str(error)[:100]})") from error
        raise WeightsError("damaged pickle (it does not end)")

    # Opcodes, by what they do. Names and meanings: the standard library's pickletools.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def pop(self, _: Any) -> None:
        # Popping may also remove a mark that lies on top.
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def make_tuple(self, count: int) -> None:
        items = self.stack[-count:]
        if len(items) != count:
            raise WeightsError("damaged pickle (empty stack)")
        del self.stack[-count:]
        self.push(tuple(items))

    def make_dict(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.push({})
        self._set(items)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def set_items(self, _: Any) -> None:
        self._set(self.pop_to_mark())

    def set_item(self, _: Any) -> None:
        self._set([self.stack.pop(-2), self.stack.pop()])

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys are not needed, and hashing a tuple nested a million deep would overflow the C stack.
            if isinstance(key, (str, int, float, bool, bytes, type(None))):
                target[key] = value

    def name(self, pair: str) -> None:
        module, _, name = pair.partition(" ")
        self.push(self._global(module, name))

    def stack_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise WeightsError("damaged pickle (a name that is no text)")
        self.push(self._global(module, name))

    def instance(self, pair: str) -> None:
        arguments = tuple(self.pop_to_mark())
        module, _, name = pair.partition(" ")
        self.push(self._call(self._global(module, name), arguments))

    def build_object(self, _: Any) -> None:
        function, *arguments = self.pop_to_mark()
        self.push(self._call(function, tuple(arguments)))

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.push(self._call(function, arguments))

    def new_with_keywords(self, _: Any) -> None:
        self.stack.pop()
        self.reduce(None)

    def make_frozenset(self, _: Any) -> None:
        self.pop_to_mark()
        self.push(Opaque("builtins.frozenset"))

    def build_state(self, _: Any) -> None:
        # Attributes of an object: a state dict's _metadata, a log's values. Nobody here needs them.
        self.stack.pop()

    def persistent(self, _: Any) -> None:
        self.push(self._storage(self.stack.pop()))

    # What the names mean.

    @staticmethod
    def _global(module: str, name: str) -> Global:
        found = Global(PYTHON_2.get(module, module), name)
        text = str(found)[:200]
        if text.startswith(MODEL_PACKAGES):
            raise WeightsError(
                f"it holds a whole pickled model ({text}), which only its own code can load; accepted: a state dict, "
                "saved with torch.save(model.state_dict(), …)"
            )
        if text in _MEANINGS or text.startswith(_REBUILDS) or _storage_dtype(found) is not None:
            return found
        if _of_harmless_package(found) or found.name in HARMLESS.get(found.module, ()):
            return found
        raise WeightsError(
            f"unpickled in the ordinary way this file would run {text}, which has no place among weights; nothing of "
            "it was run. Accepted: tensors and plain values, saved with torch.save(model.state_dict(), …)"
        )

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global):
            raise WeightsError(f"it would call the result of a call ({_kind(function)}), which has no place in weights")
        if not isinstance(arguments, tuple):
            raise WeightsError("damaged pickle (arguments that are no tuple)")
        name = str(function)
        if name == "builtins.getattr":
            # mmengine's logs refer to their own methods in this way; on anything else it is a step towards code.
            if len(arguments) != 2 or not isinstance(arguments[0], Global) or not _of_harmless_package(arguments[0]):
                raise WeightsError("it would run builtins.getattr, which has no place among weights; nothing was run")
            return Opaque(f"{arguments[0]}.{arguments[1]}" if isinstance(arguments[1], str) else name)
        meaning = _MEANINGS.get(name)
        return Opaque(name) if meaning is None else meaning(self, arguments)

    def _ordered_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        pairs = arguments[0] if arguments else []
        # Python 2 wrote an OrderedDict as a call with its pairs. One list may be named again and again: copying it
        # more often than there are opcodes is an attack.
        self.copied += len(pairs)
        if self.copied > self.seen:
            raise WeightsError("damaged pickle (it repeats itself)")
        items = pairs.items() if isinstance(pairs, dict) else pairs
        return {key: value for key, value in items if isinstance(key, str)}

    def _storage(self, identity: Any) -> StorageRef:
        """Read torch's persistent id: ("storage", type, key, location, elements[, (view key, offset, elements)])."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise WeightsError(f"damaged pickle (an unknown persistent id, {_kind(identity)})")
        kind, key, _, numel = identity[1:5]
        dtype = _storage_dtype(kind) if isinstance(kind, Global) else None
        key = str(key) if isinstance(key, (str, int)) else ""
        if dtype is None or not key or not _is_count(numel):
            raise WeightsError(f"damaged pickle (a storage of an unknown kind, {_kind(kind)})")
        storage = StorageRef(key, dtype, numel)
        known = self.storages.setdefault(key, storage)
        if known != storage:
            raise WeightsError(f"damaged pickle (storage {key[:80]} has two types or lengths)")
        if len(identity) == 6 and identity[5] is not None:
            view_key, offset, view_numel = identity[5]
            if not (isinstance(view_key, (str, int)) and _is_count(offset) and _is_count(view_numel)):
                raise WeightsError("damaged pickle (a view of a storage without bounds)")
            name = f"view:{view_key}"
            self.views[name] = View(key, offset, view_numel)
            return StorageRef(name, dtype, view_numel)
        return storage

    def _tensor(self, arguments: tuple[Any, ...]) -> TensorRef | Opaque:
        storage, offset, size, stride = arguments[:4]
        if not isinstance(storage, StorageRef):
            return Opaque("torch.Tensor")
        if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= MAX_DIMENSIONS):
            raise WeightsError("damaged pickle (a tensor without sizes)")
        if not (_is_count(offset) and all(map(_is_count, size)) and all(map(_is_count, stride))):
            raise WeightsError("damaged pickle (a tensor with negative or fractional sizes)")
        return TensorRef(storage, offset, size, stride)

    def _first(self, arguments: tuple[Any, ...]) -> Any:
        return arguments[0] if arguments else Opaque("nothing")

    def _typed_tensor(self, arguments: tuple[Any, ...]) -> Any:
        """A tensor with attributes of its own: (function, type, its arguments, state)."""
        function, _, inner = arguments[:3]
        rebuild = {_REBUILD: self._tensor, _PARAMETER: self._first}.get(str(function))
        return rebuild(inner) if rebuild and isinstance(inner, tuple) else Opaque("torch.Tensor")

    def _size(self, arguments: tuple[Any, ...]) -> Any:
        return arguments[0] if arguments and isinstance(arguments[0], tuple) else Opaque("torch.Size")


def _kind(value: Any) -> str:
    """Name a value for an error. Never its repr: lists that hold one list twice, forty deep, would print for years."""
    if isinstance(value, Global):
        return str(value)[:200]
    return value.name[:200] if isinstance(value, Opaque) else type(value).__name__


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _of_harmless_package(found: Global) -> bool:
    return found.module.partition(".")[0] in HARMLESS_PACKAGES or found.module.startswith("torch.optim.")


def _storage_dtype(found: Global) -> str | None:
    if found.module not in ("torch", "torch.cuda", "torch.storage"):
        return None
    return STORAGES.get(found.name, found.name if found.name.endswith("Storage") else None)


_REBUILDS = "torch._utils._rebuild_"
_REBUILD = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_MEANINGS: dict[str, Callable[[Reader, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": Reader._ordered_dict,
    _REBUILD: Reader._tensor,
    "torch._utils._rebuild_tensor": Reader._tensor,
    _PARAMETER: Reader._first,
    "torch._utils._rebuild_parameter_with_state": Reader._first,
    "torch._tensor._rebuild_from_type_v2": Reader._typed_tensor,
    "torch.Size": Reader._size,
    "torch.nn.parameter.Parameter": Reader._first,
    "torch.serialization._get_layout": lambda reader, arguments: Opaque("torch.layout"),
}

_OPCODES: dict[str, Callable[[Reader, Any], None]] = {
    "PROTO": lambda reader, _: None,
    "FRAME": lambda reader, _: None,
    "MARK": Reader.mark,
    "POP": Reader.pop,
    "POP_MARK": lambda reader, _: reader.pop_to_mark().clear(),
    "DUP": lambda reader, _: reader.push(reader.stack[-1]),
    "PUT": Reader.put,
    "BINPUT": Reader.put,
    "LONG_BINPUT": Reader.put,
    "MEMOIZE": Reader.put,
    "GET": lambda reader, index: reader.push(reader.memo[index]),
    "BINGET": lambda reader, index: reader.push(reader.memo[index]),
    "LONG_BINGET": lambda reader, index: reader.push(reader.memo[index]),
    "NONE": lambda reader, _: reader.push(None),
    "NEWTRUE": lambda reader, _: reader.push(True),
    "NEWFALSE": lambda reader, _: reader.push(False),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_SET": lambda reader, _: reader.push(Opaque("builtins.set")),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.pop_to_mark())),
    "TUPLE1": lambda reader, _: reader.make_tuple(1),
    "TUPLE2": lambda reader, _: reader.make_tuple(2),
    "TUPLE3": lambda reader, _: reader.make_tuple(3),
    "LIST": lambda reader, _: reader.push(reader.pop_to_mark()),
    "DICT": Reader.make_dict,
    "APPEND": lambda reader, _: reader.append([reader.stack.pop()]),
    "APPENDS": lambda reader, _: reader.append(reader.pop_to_mark()),
    "SETITEM": Reader.set_item,
    "SETITEMS": Reader.set_items,
    "ADDITEMS": lambda reader, _: reader.pop_to_mark().clear(),
    "FROZENSET": Reader.make_frozenset,
    "GLOBAL": Reader.name,
    "STACK_GLOBAL": Reader.stack_name,
    "INST": Reader.instance,
    "OBJ": Reader.build_object,
    "REDUCE": Reader.reduce,
    "NEWOBJ": Reader.reduce,
    "NEWOBJ_EX": Reader.new_with_keywords,
    "BUILD": Reader.build_state,
    "BINPERSID": Reader.persistent,
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), Reader.push
    ),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), Reader.push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), Reader.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), Reader.push),
}
