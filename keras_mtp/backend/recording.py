"""A function's operations noted once, and run from then on without what Keras does around each of them."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from operator import getitem
from typing import Any

WORTH = 8  # calls with arguments of the same shapes after which they are noted, which takes as long as some five calls


def recorded(function: Callable) -> Callable:
    """`function` of tensors, for calls by the thousand with arguments of few shapes, where no gradient is needed.

    JAX and TensorFlow compile it with whatever calls it. On torch a pass of a small model is 1,800 operations of Keras, each
    of which looks at its arguments before torch sees them: a sixth to a third of the time. There, what torch was asked to do is kept
    for every set of shapes, and then asked for again, operation by operation: the same results to the last bit.

    Args:
        function: takes and returns nested structures, of tensors above all; whatever else is in them is part of the shape. It
            asks no tensor for its value (RuntimeError). A variable that it reads is seen as it is at each call. It may write into its
            arguments.
    """
    import keras

    return _Recorded(function) if keras.config.backend() == "torch" else function


class _Recorded:
    """See `recorded`."""

    def __init__(self, function: Callable):
        self.function = function
        self.calls: Counter[Hashable] = Counter()
        self.programs: dict[Hashable, Callable] = {}

    def __call__(self, *arguments):
        from keras import tree

        leaves = tree.flatten(arguments)
        shapes = tuple(map(_shape, leaves))
        if program := self.programs.get(shapes):
            return program(leaves)
        self.calls[shapes] += 1
        if self.calls[shapes] <= WORTH:
            return self.function(*arguments)
        result, self.programs[shapes] = _noted(self.function, arguments, leaves)
        return result


def _shape(leaf) -> Hashable:
    import torch

    return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf


def _noted(function: Callable, arguments: tuple, leaves: Sequence) -> tuple[Any, Callable]:
    """What `function` returns for these arguments, and a function from the leaves of others like them to its results."""
    import torch
    from keras import tree
    from torch.fx import Graph, GraphModule, Node
    from torch.utils._python_dispatch import TorchDispatchMode

    graph, constants = Graph(), torch.nn.Module()
    nodes: dict[int, Node] = {}  # by the `id` of a tensor
    alive: list[torch.Tensor] = []  # so that no other tensor gets the `id`

    def note(tensor: torch.Tensor, node: Node) -> None:
        nodes[id(tensor)] = node
        alive.append(tensor)

    def node_of(value):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in nodes:  # a weight, or another tensor from outside
            constants.register_buffer(name := f"constant_{len(alive)}", value)
            note(value, graph.get_attr(name))
        return nodes[id(value)]

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            result = operation(*args, **kwargs)
            node = graph.call_function(operation, *tree.map_structure(node_of, (args, kwargs)))
            if isinstance(result, torch.Tensor):
                note(result, node)
            elif not isinstance(result, (tuple, list)):
                raise RuntimeError(
                    f"A recorded function must ask no tensor for its value. It asked: {operation}"
                )
            else:
                for place, part in enumerate(result):
                    note(part, graph.call_function(getitem, (node, place)))
            return result

    for leaf in leaves:
        node = graph.placeholder(f"leaf_{len(graph.nodes)}")
        if isinstance(leaf, torch.Tensor):
            note(leaf, node)
    with Noting():
        result = function(*arguments)
    graph.output([node_of(leaf) for leaf in tree.flatten(result)])
    program = GraphModule(constants, graph)
    # What the classes above hold lives until all garbage is collected: every tensor of this pass, if they held them still.
    alive.clear()
    nodes.clear()
    structure = tree.map_structure(lambda _: 0, result)
    return result, lambda leaves: tree.pack_sequence_as(structure, program(*leaves))
