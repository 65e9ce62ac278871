"""What torch.compile is told of a function, without the second that the import of torch._dynamo takes.

torch.compiler.assume_constant_result and torch.compiler.disable would import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Marked = TypeVar("Marked", bound=Callable[..., Any])


def constant_in_graphs(function: Marked) -> Marked:
    """Have a function without arguments called while a graph is traced: the graph holds what it returned."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def untraced(function: Marked) -> Marked:
    """Have torch.compile leave a function alone that is called outside of graphs, and all that it calls.

    It costs a call nothing, as a wrapper would. A torch without this marks nothing, and traces what needs no tracing.
    """
    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    except (ImportError, AttributeError):
        pass
    return function
