"""The import graph: no circles, and few levels, so that a reader reaches the bottom of any module in a few steps."""

from functools import cache
from graphlib import TopologicalSorter

import grimp
import pytest


@cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules of its package that it imports. Imports for type checkers alone don't count."""
    graph = grimp.build_graph(
        "clipmill", "curation", "svd", "training", "pipelines", exclude_type_checking_imports=True
    )
    return {
        module: {
            imported
            for imported in graph.find_modules_directly_imported_by(module)
            if imported.split(".")[0] == module.split(".")[0]
        }
        for module in graph.modules
    }


@pytest.mark.parametrize(
    ("package", "levels"), [("clipmill", 7), ("curation", 7), ("svd", 9), ("training", 7), ("pipelines", 9)]
)
def test_levels_of_imports(package: str, levels: int) -> None:
    """Modules on the longest chain of imports within a package."""
    within = {module: below for module, below in imports().items() if module.split(".")[0] == package}
    longest: dict[str, list[str]] = {}
    for module in TopologicalSorter(within).static_order():  # raises CycleError if there is a circle
        below = max((longest[imported] for imported in within[module]), key=len, default=[])
        longest[module] = [module, *below]
    chain = max(longest.values(), key=len)
    assert len(chain) <= levels, " -> ".join(chain)
