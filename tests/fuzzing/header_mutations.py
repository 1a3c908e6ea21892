"""Changes of the headers of npy, safetensors and tar files."""

import ast
import json
import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzzing.byte_mutations import byte_changes
from tests.fuzzing.mutations import JSON_TEXTS, NAMES, changed_document, to_json


def npy_files(data: bytes) -> SearchStrategy[bytes]:
    """Changes of an array in NumPy's format, and of the entries of its header."""
    header = ast.literal_eval(data[10 : 10 + int.from_bytes(data[8:10], "little")].decode())
    body = data[10 + int.from_bytes(data[8:10], "little") :]
    types = (
        "<f2",
        ">f2",
        "|O",
        "<f8",
        "|V8",
        "<U9",
        "|S0",
        "<M8[s]",
        "[('a', '<f2')]",
        "(3,)f2",
        "f",
        "x",
        "",
        ",,",
        "0f2",
    )
    shapes = (
        (),
        (0,),
        (-1,),
        (1 << 62, 4),
        (1 << 31, 0),
        (1,) * 70,
        (2.5,),
        "x",
        None,
        (True,),
        (10**30,),
        [3],
        (0, -1),
    )
    changes = st.one_of(
        st.sampled_from([*types, [("a", "O")], [("a", "<f2", (1 << 40,))], None, 5]).map(
            lambda value: {"descr": value}
        ),
        st.sampled_from(shapes).map(lambda value: {"shape": value}),
        st.sampled_from((None, 1, "x", True)).map(lambda value: {"fortran_order": value}),
        st.sampled_from(NAMES).map(lambda name: {name: 0}),
    )
    texts = st.one_of(
        changes.map(lambda change: repr({**header, **change})),
        st.sampled_from(
            ("{}", "[]", "0", "()" * 50, "(" * 5000, "-" * 9000 + "1", "__import__('os')", "1j", "\0", "[" * 90)
        ),
    )
    versions = st.sampled_from(((1, 0), (1, 0), (1, 0), (2, 0), (9, 9)))
    headers = st.builds(lambda text, version: _npy(text, version, body), texts, versions)
    return st.one_of(headers, headers.flatmap(byte_changes), byte_changes(data))


def _npy(text: str, version: tuple[int, int], body: bytes) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    form = "<H" if version == (1, 0) else "<I"
    return np.lib.format.magic(*version) + struct.pack(form, len(encoded)) + encoded + body


def safetensors_files(data: bytes) -> SearchStrategy[bytes]:
    """Changes of a safetensors file: of its header's entries, of the header's length, of bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header = dict(list(header.items())[:6])  # few entries, so that most changes are of what matters
    documents = changed_document(header, JSON_TEXTS).map(lambda drawn: _safetensors(to_json(*drawn), body))
    entries = st.builds(
        lambda name, change: _safetensors(
            json.dumps({**header, name: {**_entry(header, name), **change}}).encode(), body
        ),
        st.sampled_from([name for name in header if name != "__metadata__"]),
        st.one_of(
            st.sampled_from(("F16", "F64", "I64", "BOOL", "F8_E4M3", "BF16", "x", None)).map(lambda v: {"dtype": v}),
            st.sampled_from(([], [0], [1 << 40, 1 << 40], [-1], [1], [2.5], None)).map(lambda v: {"shape": v}),
            st.sampled_from(([0, 0], [0, 4], [8, 4], [0, 1 << 63], [-4, 4], [0], None)).map(
                lambda v: {"data_offsets": v}
            ),
        ),
    )
    lengths = st.sampled_from((0, 1, length - 1, length + 1, 1 << 31, (1 << 64) - 1, len(data))).map(
        lambda value: struct.pack("<Q", value) + data[8:]
    )
    return st.one_of(documents, entries, lengths, byte_changes(data))


def _entry(header: Any, name: str) -> Any:
    return header[name]


def _safetensors(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def tar_files(data: bytes) -> SearchStrategy[bytes]:
    """Changes of a tar: of the fields of its headers, with the right checksum; and of bytes."""
    fields = {  # offset and length
        "name": (0, 100),
        "mode": (100, 8),
        "uid": (108, 8),
        "size": (124, 12),
        "mtime": (136, 12),
        "type": (156, 1),
        "link": (157, 100),
        "magic": (257, 8),
        "prefix": (345, 155),
    }
    values = st.sampled_from(
        (
            *(
                b"",
                b"\0",
                b"../../x.txt",
                b"/etc/x.json",
                b"x",
                b"x" * 99,
                b"-1",
                b"77777777777",
                b"\x80" + b"\xff" * 11,
            ),
            *(b"\xff" * 12, b"99999999999", b" ", b"x.npy", b"L", b"x", b"g", b"S", b"1", b"2", b"5", b"\xe9\n.txt"),
        )
    )
    headers = _headers(data)

    def change(header: int, field: str, value: bytes) -> bytes:
        start, length = fields[field]
        changed = bytearray(data)
        changed[header + start : header + start + length] = value[:length].ljust(length, b"\0")
        changed[header + 148 : header + 156] = b" " * 8
        total = sum(changed[header : header + 512])
        changed[header + 148 : header + 156] = f"{total:06o}\0 ".encode()
        return bytes(changed)

    one = st.builds(change, st.sampled_from(headers), st.sampled_from(list(fields)), values)
    return st.one_of(one, one.flatmap(byte_changes), byte_changes(data))


def _headers(data: bytes) -> list[int]:
    """Returns the offsets of the headers of a tar."""
    offsets, offset = [], 0
    while data[offset : offset + 1].strip(b"\0"):
        offsets.append(offset)
        size = int(data[offset + 124 : offset + 135], 8)
        offset += 512 + -(-size // 512) * 512
    return offsets
