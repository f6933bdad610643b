"""What the files of the project import, read from their source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules(folder: str) -> dict[str, Path]:
    """Returns the files of a folder at the root by the dotted names of their modules."""
    paths = sorted((ROOT / folder).rglob('*.py'))
    return {'.'.join(p.relative_to(ROOT).with_suffix('').parts): p for p in paths}


def imports(name: str, path: Path) -> Iterator[str]:
    """Yields the dotted names that a module imports, `a.b` for `from a import b`, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split('.')[: -node.level] if node.level else []
            base = '.'.join([*base, *filter(None, [node.module])])
            yield from (f'{base}.{alias.name}' for alias in node.names)


def third_parties(folder: str) -> set[str]:
    """Returns the packages that a folder imports and that are neither ours nor Python's."""
    ours = {*sys.stdlib_module_names, 'kat_mm'}
    found = {i.partition('.')[0] for item in modules(folder).items() for i in imports(*item)}
    return found - ours
