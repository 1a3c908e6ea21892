"""The layout of the project as data: `python -m tests.architecture` writes CONTRIBUTING's table of rooms."""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.running import REPOSITORY

OURS = ("gen1_train", "data_tools", "miniature", "benchmarks")
TABLE = ("<!-- rooms: python -m tests.architecture -->", "<!-- end of rooms -->")


@dataclass(frozen=True)
class Room:
    name: str  # dotted, of a package or a single file
    floor: int
    holds: str
    imports: tuple[str, ...]  # rooms
    part_of: str | None = None  # the room that contains this one; the two may import each other, file by file

    @property
    def whole(self) -> str:
        return self.part_of or self.name


def read_layout() -> tuple[dict[str, Room], dict[str, tuple[str, ...]]]:
    """The rooms by name, and the rooms and files that may import each restricted library."""
    declared = tomllib.loads((REPOSITORY / "tests" / "architecture.toml").read_text())
    rooms = [Room(**{**room, "imports": tuple(room["imports"])}) for room in declared["room"]]
    return {room.name: room for room in rooms}, {name: tuple(where) for name, where in declared["libraries"].items()}


ROOMS, LIBRARIES = read_layout()


def is_below(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name; a package has the name of its folder."""
    paths = {}
    for path in sorted(file for package in OURS for file in (REPOSITORY / package).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


MODULES = modules()


def imports(module: str, path: Path) -> Iterator[str]:
    """Everything that a module imports, anywhere in the file; `from a import b` yields a.b if that is a module."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                package = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{package}.{base}".rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield ast.literal_eval(node.args[0])


def room_of(module: str) -> Room | None:
    """The innermost room that contains a module."""
    names = [name for name in ROOMS if is_below(module, (name,))]
    return ROOMS[max(names, key=len)] if names else None


def may_import(room: Room, target: str) -> bool:
    other = room_of(target)
    if other is None:  # gen1_train itself, whose __init__.py may import anything
        return room.floor >= 6
    family = other.name in (room.name, room.part_of) or other.part_of == room.name
    return family or other.name in room.imports or other.name.partition(".")[0] in room.imports


def forbidden(module: str, path: Path) -> list[str]:
    """The imports of a module that the layout does not allow, as `module -> target`."""
    room = room_of(module)
    violations = []
    for target in imports(module, path):
        top = target.partition(".")[0]
        if top in OURS:
            allowed = room is None or may_import(room, target)
        else:  # benchmarks may compare with every library
            allowed = is_below(module, ("benchmarks", *LIBRARIES.get(top, (module,))))
        if not allowed:
            violations.append(f"{module} -> {target}")
    return violations


def import_cycles(graph: Mapping[str, set[str]]) -> list[str]:
    """One line for each import cycle that a depth-first search finds."""
    cycles: list[str] = []
    done: set[str] = set()
    path: list[str] = []

    def walk(name: str) -> None:
        if name in path:
            cycles.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            path.append(name)
            for target in sorted(graph.get(name, ())):
                walk(target)
            path.pop()
            done.add(name)

    for name in graph:
        walk(name)
    return cycles


def table() -> str:
    """The rooms from the lowest floor up, as a Markdown table."""
    rows = ["| floor | room | holds | may import |", "|---|---|---|---|"]
    for room in sorted(ROOMS.values(), key=lambda room: room.floor):
        names = ", ".join(f"`{name.removeprefix('gen1_train.')}`" for name in room.imports) or "nothing"
        whole = f" and `{room.part_of.removeprefix('gen1_train.')}`" if room.part_of else ""
        rows.append(f"| {room.floor} | `{room.name}` | {room.holds} | {names}{whole} |")
    return "\n".join(rows)


def with_table(text: str) -> str:
    """CONTRIBUTING.md with its table replaced by the current one."""
    before, after = text.split(TABLE[0])[0], text.split(TABLE[1])[1]
    return f"{before}{TABLE[0]}\n{table()}\n{TABLE[1]}{after}"


if __name__ == "__main__":
    file = REPOSITORY / "CONTRIBUTING.md"
    file.write_text(with_table(file.read_text()))
