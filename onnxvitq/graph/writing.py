"""Graphs turned into model files.

A model is one file, or two with the weights in a file beside it; either is written in full before it takes its place.
"""

import contextlib
import glob
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from onnxvitq.core.files import atomic_file
from onnxvitq.graph.messages import all_nodes, external_files
from onnxvitq.graph.shapes import stated_shapes

PROTOBUF_LIMIT = 1900 * 2**20  # bytes; a message cannot pass 2 GiB, and some room is needed for the graph itself
SMALLEST_EXTERNAL = 1024  # bytes; what is smaller stays in the model, where onnxruntime can read shapes and scales
DIGITS = 16  # hexadecimal digits of the digest in the name of a file of weights


def to_proto(graph: gs.Graph, metadata: Mapping[str, str], *, to_load: bool = False) -> onnx.ModelProto:
    """A graph as a model.

    Args:
        graph: is cleaned up and sorted in place.
        metadata: key -> value, written in sorted order.
        to_load: make the model fast and small to load. The runtime infers intermediate shapes itself; those that it cannot
            infer are stated, for which all shapes are inferred anew. Constants are ordered by size.
    """
    graph.cleanup().toposort()
    stated = stated_shapes(graph) if to_load else []
    proto = gs.export_onnx(graph, do_type_check=False)  # onnxruntime finds the type of an output that states none
    if to_load:
        _put_smallest_first(proto.graph)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(stated)
    used = {node.domain or "" for node in all_nodes(proto.graph)}
    unused = [entry for entry in proto.opset_import if entry.domain and entry.domain not in used]
    for entry in unused:
        proto.opset_import.remove(entry)
    proto.producer_name = "onnxvitq"
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    return proto


def _put_smallest_first(graph: onnx.GraphProto) -> None:
    """Order the constants by size, and those of one size by the node that reads them first.

    Weights in the model's own file are copied twice as a session loads, one after the other, and each copy is freed when the
    next is made. Its place is of use to others only where it is large enough and nothing small was put behind it. (MB at the
    peak of a session, smallest first, as they are read, and as exported: ViT-B 130, 145, 196; ViT-S 55 to 58, 57, 57 to 69;
    Swin-T 81 to 84, 97 to 99, 86 to 97; DeiT-T 26, 29, 29. Largest first: four of six 1 to 45 more, two 1 to 3 less.)
    """
    first_read: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            first_read.setdefault(name, index)
    ordered = sorted(graph.initializer, key=lambda tensor: (len(tensor.raw_data), first_read.get(tensor.name, -1)))
    del graph.initializer[:]
    graph.initializer.extend(ordered)


def data_beside(proto: onnx.ModelProto, path: Path, *, asked: bool) -> Path | None:
    """The path of the file for a model's weights, or None where they go into the model file.

    The file is named by a digest of its contents, so that while a model is replaced the old and the new one each have their
    own weights beside them.

    Args:
        proto: the model, with its weights.
        path: where the model will be.
        asked: put weights into a file of their own, if any is large enough; otherwise only where one message cannot hold them.
    """
    sizes = [len(tensor.raw_data) for tensor in proto.graph.initializer]
    if max(sizes, default=0) < SMALLEST_EXTERNAL or not (asked or sum(sizes) >= PROTOBUF_LIMIT):
        return None
    digest = hashlib.sha256()
    for tensor in proto.graph.initializer:
        digest.update(tensor.SerializeToString(deterministic=True))
    return path.with_name(f"{path.name}.{digest.hexdigest()[:DIGITS]}.data")


@contextlib.contextmanager
def atomic_model(path: Path) -> Iterator[Path]:
    """``core.files.atomic_file`` for a model whose weights may lie in a file beside it (``data_beside``).

    When the block ends, well or not, files of weights that the model at ``path`` does not name are removed.

    Raises:
        OutputError: the file cannot be written; what was at ``path`` is untouched.
    """
    try:
        with atomic_file(path) as temporary:
            yield temporary
    finally:
        files = set(path.parent.glob(f"{glob.escape(path.name)}.{DIGITS * '[0-9a-f]'}.data"))
        for file in files - (_named_by(path) if files else set()):
            file.unlink(missing_ok=True)


def save_model(proto: onnx.ModelProto, path: Path, data: Path | None = None) -> int:
    """Write a model and return its size in bytes, weights included.

    Args:
        proto: the model; it loses its weights where they go into ``data``.
        path: the model file.
        data: the file for the weights, replaced in one step; None writes one file.

    Raises:
        OutputError: ``data`` cannot be written.
    """
    if data is None:
        onnx.save(proto, path, format="protobuf")  # whatever the file is called
        return path.stat().st_size
    with atomic_file(data) as temporary:
        temporary.unlink()  # onnx writes weights into no file that exists
        _save_in_two(proto, path, temporary.name)
        temporary.chmod(path.stat().st_mode)  # onnx makes it for its owner alone
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    onnx.save(proto, path, format="protobuf")
    return path.stat().st_size + data.stat().st_size


def save_for_session(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model for onnxruntime to open once, with its weights in a file beside it; ``proto`` loses its weights.

    onnxruntime maps that file, so the weights are in memory once less, and models over 2 GB work.

    Raises:
        OSError: the files cannot be written.
    """
    _save_in_two(proto, path, f"{path.name}.data")


def _save_in_two(proto: onnx.ModelProto, path: Path, location: str) -> None:
    onnx.save(
        proto,
        path,
        format="protobuf",
        save_as_external_data=True,
        location=location,
        size_threshold=SMALLEST_EXTERNAL,
    )


def _named_by(path: Path) -> set[Path]:
    """Files that hold weights of the model there, if one is."""
    try:
        return external_files(onnx.load(path, format="protobuf", load_external_data=False), path.parent)
    except (OSError, DecodeError):
        return set()
