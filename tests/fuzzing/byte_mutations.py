"""Changes of any bytes."""

import struct

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn


@st.composite
def byte_changes(draw: DrawFn, data: bytes) -> bytes:
    """Draws a file with up to five changes of its bytes."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(changed)))
        length = draw(st.sampled_from((1, 1, 2, 4, 8, 64, 1000)))
        match draw(st.sampled_from(("flip", "number", "insert", "delete", "repeat", "truncate", "splice", "noise"))):
            case "flip" if start < len(changed):
                changed[start] ^= 1 << draw(st.integers(0, 7))
            case "number":
                form = draw(st.sampled_from(("<H", ">H", "<I", ">I", "<Q", ">Q", "B")))
                limit = (1 << 8 * struct.calcsize(form)) - 1
                value = draw(st.sampled_from((0, 1, limit, limit >> 1, (limit >> 1) + 1, limit - 1)))
                changed[start : start + struct.calcsize(form)] = struct.pack(form, value)
            case "insert":
                changed[start:start] = draw(st.sampled_from((b"\0", b"\xff", b"\n", b"[", b'"', b"\0" * 100)))
            case "delete":
                del changed[start : start + length]
            case "repeat":
                changed[start:start] = changed[start : start + length] * draw(st.sampled_from((1, 2, 50)))
            case "truncate":
                del changed[start:]
            case "splice":
                other = draw(st.integers(0, len(data)))
                changed[start : start + length] = data[other : other + length]
            case "noise":
                changed[start : start + 8] = draw(st.binary(max_size=8))
    return bytes(changed)
