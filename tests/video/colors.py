"""Color profiles for tests, and the colors that they define, in plain arithmetic."""

import itertools
import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
# Columns: X, Y, Z of red, green and blue under D50, as in the profiles of the standards.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
CYAN_INK = (60.0, -10.0, -40.0)  # L*a*b* of full cyan in cmyk_profile(); without a profile, it is (0, 255, 255)


def srgb_curve(values: np.ndarray) -> np.ndarray:
    """Converts stored values 0..1 to linear light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_xyz(xyz: np.ndarray) -> np.ndarray:
    """Converts X, Y, Z under D50 to sRGB, 0..255."""
    light = (np.linalg.inv(SRGB) @ xyz).clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def from_lab(lab: tuple[float, float, float]) -> np.ndarray:
    """Converts L*, a*, b* to sRGB, 0..255."""
    middle = (lab[0] + 16) / 116
    roots = np.array([middle + lab[1] / 500, middle, middle - lab[2] / 200])
    return from_xyz(D50 * np.where(roots > 6 / 29, roots**3, (roots - 16 / 116) * 3 * (6 / 29) ** 2))


def rgb_profile(primaries: np.ndarray, curve: np.ndarray) -> bytes:
    """An RGB profile; `curve` is the linear light of evenly spaced stored values."""
    table = b"curv" + bytes(4) + struct.pack(">I", len(curve)) + (curve * 65535).round().astype(">u2").tobytes()
    tags = {b"wtpt": _xyz(D50)}
    for column, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = _xyz(primaries[:, column])
        tags[name + b"TRC"] = table
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def cmyk_profile() -> bytes:
    """The profile of a press whose cyan is CYAN_INK; the other inks darken, and black is black."""
    nodes = []
    for inks in itertools.product((0, 1), repeat=4):
        lab = CYAN_INK if inks == (1, 0, 0, 0) else (0 if inks[3] else 100 - 25 * sum(inks), 0.0, 0.0)
        nodes += [round(lab[0] * 652.8), round((lab[1] + 128) * 256), round((lab[2] + 128) * 256)]
    identity_curve = struct.pack(">2H", 0, 65535)
    table = (
        b"mft2" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(np.eye(3, dtype=int) << 16).ravel().tolist())
    )
    table += struct.pack(">2H", 2, 2) + identity_curve * 4 + struct.pack(f">{len(nodes)}H", *nodes) + identity_curve * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": table})


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(values * 65536).round().astype(int).tolist())


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """The container: a header of 128 bytes, the table of tags, the tags."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79), **tags}
    table = struct.pack(">I", len(tags))
    content = b""
    for name, data in tags.items():
        table += name + struct.pack(">2I", 132 + 12 * len(tags) + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    header = struct.pack(">I", 128 + len(table) + len(content)) + bytes(4) + b"\x02\x40\0\0" + kind + space + connection
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(D50)[8:]
    return header.ljust(128, b"\0") + table + content
